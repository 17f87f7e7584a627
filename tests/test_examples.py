"""examples/: slurm.sh as bash runs it, with stand-ins for the programs of SLURM and for torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = (Path(__file__).parents[1] / "examples" / "slurm.sh").read_text(encoding="utf-8")
HOSTILE = ["two words", "it's", '"quoted"', "$(touch owned)", "`touch owned`", "a\nb; touch owned", "\\", "*"]

PROGRAMS = {
    "scontrol": """
        import sys
        if sys.argv[1] == "show":
            print("node1\\nnode2")
        else:
            open("requeued", "a").write(" ".join(sys.argv[1:]) + "\\n")
        """,
    "srun": """
        import subprocess, sys
        words = [word for word in sys.argv[1:] if not word.startswith("--cpus")]
        step = subprocess.Popen(words, start_new_session=True)
        open("step.pid", "w").write(str(step.pid))
        code = step.wait()
        sys.exit(code if code >= 0 else 128 - code)
        """,
    "torchrun": """
        import json, os, pathlib, sys
        json.dump(sys.argv[1:], open("torchrun.json", "w"))
        status = os.environ.get("STATUS")
        if status:
            pathlib.Path("star").mkdir(exist_ok=True)
            pathlib.Path("star/status.json").write_text(status)
        sys.exit(int(os.environ["CODE"]))
        """,
}

WAITING_TORCHRUN = """
    import os, signal, subprocess, sys
    run = '''if True:
        import signal, sys
        def stop(*_):
            open("star/status.json", "w").write('{"exit_code": 75}')
            sys.exit(75)
        signal.signal(signal.SIGUSR1, stop)
        open("ready", "w").close()
        signal.sigtimedwait([], SECONDS)
        '''
    os.makedirs("star", exist_ok=True)
    sys.exit(subprocess.Popen([sys.executable, "-c", run], start_new_session=True).wait() and 1)
    """


class Cluster:
    """A folder in which scripts are run, with a folder of programs in front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, source in PROGRAMS.items():
            self.install(name, source)

    def install(self, name: str, source: str) -> None:
        program = self.bin / name
        program.write_text(f"#!{sys.executable}\nif True:{source}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def start(self, script: str, *words: str, code: int = 0, status: str = "") -> subprocess.Popen[bytes]:
        slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", "-s", "--", *words],
            stdin=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, **slurm, "PATH": path, "CODE": str(code), "STATUS": status},
        )
        assert process.stdin
        process.stdin.write(script.encode())
        process.stdin.close()
        return process

    def run(self, script: str, *words: str, code: int = 0, status: str = "") -> int:
        return self.start(script, *words, code=code, status=status).wait(timeout=60)

    def arguments(self, program: str) -> list[str]:
        return json.loads((self.folder / f"{program}.json").read_text())

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_slurm_reads_the_options_before_anything_else():
    lines = SCRIPT.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", "\n".join(lines[: lines.index("")]), re.MULTILINE)
    assert {"signal": "USR1@120", "open-mode": "append", "requeue": ""}.items() <= dict(directives).items()


def test_torchrun_starts_a_process_for_each_gpu_and_meets_on_the_first_node(cluster):
    words = ["user/a", "user/b", *HOSTILE]
    assert cluster.run(SCRIPT, *words) == 0
    assert cluster.arguments("torchrun") == [
        *("--nnodes", "2", "--nproc_per_node", "4", "--rdzv_id", "4242", "--rdzv_backend", "c10d"),
        *(
            "--rdzv_endpoint",
            "node1:24242",
            "-m",
            "starzoo.cli",
            "fit-star",
            "user/a",
            "user/b",
            *HOSTILE,
            "--out",
            "star",
        ),
    ]
    assert not (cluster.folder / "owned").exists()


@pytest.mark.parametrize(
    ("code", "status", "ends", "requeued"),
    [
        (0, '{"state": "done", "exit_code": 0}', 0, False),
        (1, '{"state": "failed", "exit_code": 75}', 75, True),
        (1, '{\n "stage": "fit",\n "exit_code": 75,\n "processes": 2\n}\n', 75, True),
        (1, '{"exit_code": 6, "message": "\\"exit_code\\": 75"}', 6, False),
        (1, '{"exit_code": 130}', 130, False),
        (1, '{"exit_code": 751}', 751 % 256, False),
        (1, '{"state": "running"}', 1, False),
        (1, '{"exit_code": 0}', 1, False),
        (1, "", 1, False),
        (75, "", 75, True),
        (0, '{"exit_code": 75}', 0, False),
    ],
)
def test_the_job_ends_as_the_run_says_and_queues_again_after_75(cluster, code, status, ends, requeued):
    assert cluster.run(SCRIPT, code=code, status=status) == ends
    assert cluster.requeued == requeued
    if requeued:
        assert (cluster.folder / "requeued").read_text() == "requeue 4242\n"


def test_the_status_of_an_earlier_attempt_does_not_count(cluster):
    """Otherwise a job that cannot even start would be queued for ever."""
    cluster.run(SCRIPT, code=1, status='{"exit_code": 75}')
    (cluster.folder / "requeued").unlink()
    assert cluster.run(SCRIPT, code=1) == 1
    assert not cluster.requeued


def warn(cluster: Cluster, script: str, number: signal.Signals, everyone: bool = False, wait: int = 50) -> int:
    """Run a script, and send a signal to what srun started when the run is ready.

    SLURM tells only the children of its daemon or, depending on how it tracks processes, all their descendants.
    """
    cluster.install("torchrun", WAITING_TORCHRUN.replace("SECONDS", str(wait)))
    process = cluster.start(script)
    deadline = time.monotonic() + 30
    while not (cluster.folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    told = [int((cluster.folder / "step.pid").read_text())]
    for parent in told if everyone else ():
        told += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    assert len(told) == (3 if everyone else 1)
    for process_id in told:
        with contextlib.suppress(ProcessLookupError):  # it ended with one that was told before
            os.kill(process_id, number)
    return process.wait(timeout=60)


@pytest.mark.parametrize(
    ("number", "everyone"), [(signal.SIGUSR1, False), (signal.SIGUSR1, True), (signal.SIGTERM, False)]
)
def test_the_warning_reaches_the_run_and_not_torchrun(cluster, number, everyone):
    assert warn(cluster, SCRIPT, number, everyone) == 75
    assert cluster.requeued


def test_the_run_would_not_hear_the_warning(cluster):
    deaf = SCRIPT.replace("pkill -USR1 -P", ": ")
    assert warn(cluster, deaf, signal.SIGUSR1, wait=3) == 0


def test_a_torchrun_that_is_killed_ends_the_job(cluster):
    cluster.install("torchrun", "\n    import os\n    os.kill(os.getpid(), 9)\n")
    assert cluster.run(SCRIPT) == 128 + signal.SIGKILL
