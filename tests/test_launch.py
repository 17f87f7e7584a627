"""Batch scripts: what they say, and what they do when bash runs them with stand-ins for SLURM and torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from starzoo.cli.main import main
from starzoo.cli.parsing import parse_command
from starzoo.errors import UsageError
from starzoo.launch import launch
from starzoo.status import STATUS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "CLUSTER.md").read_text(encoding="utf-8")
FIT = ["fit-star", "user/a", "user/b", "--out", "star"]
HOSTILE = [
    "two words",
    "it's",
    '"quoted"',
    "$(touch owned)",
    "`touch owned`",
    "a\nb; touch owned",
    "#SBATCH --x",
    "\\",
    "*",
]

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
    "python": """
        import json, os, sys
        json.dump(sys.argv[1:], open("python.json", "w"))
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

    def start(self, script: str, *, code: int = 0, status: str = "") -> subprocess.Popen[bytes]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        told = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[1-2]", "CODE": str(code), "STATUS": status}
        process = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, cwd=self.folder, env={**os.environ, "PATH": path, **told}
        )
        assert process.stdin
        process.stdin.write(script.encode())
        process.stdin.close()
        return process

    def run(self, script: str, *, code: int = 0, status: str = "") -> int:
        return self.start(script, code=code, status=status).wait(timeout=60)

    def arguments(self, program: str) -> list[str]:
        return json.loads((self.folder / f"{program}.json").read_text())

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def script_of(words: list[str] = FIT, **options: object) -> str:
    return launch(parse_command(words), "slurm", options, submit=False).script


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))


def test_the_script_asks_for_what_was_given():
    asked = {
        "nodes": 3,
        "gpus": 4,
        "cpus": 16,
        "time": "2-12:00:00",
        "job_name": "my.star",
        "partition": "a,b",
        "account": "us",
    }
    assert directives(script_of(**asked, requeue=True)) == {
        "job-name": "my.star",
        "nodes": "3",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "16",
        "time": "2-12:00:00",
        "partition": "a,b",
        "account": "us",
        "signal": "USR1@120",
        "open-mode": "append",
        "requeue": "",
    }


def test_what_was_not_given_is_left_to_the_cluster():
    assert set(directives(script_of(gpus=0))) == {"job-name", "nodes", "ntasks-per-node", "time", "signal"}


def test_slurm_reads_the_options_before_anything_else():
    lines = script_of([*FIT, "--name", "x\n#SBATCH --nodes=99"], requeue=True).splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(number for number, line in enumerate(lines[1:], 1) if not line.startswith("#SBATCH "))
    assert "requeue" in directives("\n".join(lines[:first]))
    assert lines[first] == ""


@pytest.mark.parametrize(("gpus", "processes"), [(0, "1"), (1, "1"), (8, "8")])
def test_torchrun_starts_a_process_for_each_gpu_and_meets_on_the_first_node(cluster, gpus, processes):
    assert cluster.run(script_of(nodes=2, gpus=gpus, cpus=3)) == 0
    assert cluster.arguments("torchrun") == [
        *("--nnodes", "2", "--nproc_per_node", processes, "--rdzv_id", "4242", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "node1:24242", "-m", "starzoo.cli"),
        *FIT,
    ]


@pytest.mark.parametrize("word", HOSTILE)
def test_every_argument_arrives_as_it_was_given(cluster, word):
    words = ["fit-star", "user/a", word, "--out", word, "--name", word]
    script = script_of(words, requeue=True)
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0
    cluster.run(script)
    assert cluster.arguments("torchrun")[-len(words) :] == words
    assert not (cluster.folder / "owned").exists()


def test_bash_can_refuse_a_script():
    assert subprocess.run(["bash", "-n"], input=b"if (", check=False, stderr=subprocess.DEVNULL).returncode


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
    assert cluster.run(script_of(requeue=True), code=code, status=status) == ends
    assert cluster.requeued == requeued
    if requeued:
        assert (cluster.folder / "requeued").read_text() == "requeue 4242\n"


def test_the_status_is_read_where_the_run_writes_it():
    assert f"\nstatus=star/{STATUS}\n" in script_of()


def test_nothing_is_queued_again_unless_asked(cluster):
    assert cluster.run(script_of(), code=1, status='{"exit_code": 75}') == 75
    assert not cluster.requeued


def test_the_status_of_an_earlier_attempt_does_not_count(cluster):
    """Otherwise a job that cannot even start would be queued for ever."""
    script = script_of(requeue=True)
    cluster.run(script, code=1, status='{"exit_code": 75}')
    (cluster.folder / "requeued").unlink()
    assert cluster.run(script, code=1) == 1
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
    assert warn(cluster, script_of(requeue=True), number, everyone) == 75
    assert cluster.requeued


def test_the_run_would_not_hear_the_warning(cluster):
    deaf = script_of(requeue=True).replace("pkill -USR1 -P", ": ")
    assert warn(cluster, deaf, signal.SIGUSR1, wait=3) == 0


def test_a_torchrun_that_is_killed_ends_the_job(cluster):
    cluster.install("torchrun", "\n    import os\n    os.kill(os.getpid(), 9)\n")
    assert cluster.run(script_of(requeue=True)) == 128 + signal.SIGKILL


def test_other_commands_run_as_one_process(cluster):
    words = ["train", "resnet18", "--seeds", "0-9", "--out", "zoo"]
    script = script_of(words, cpus=8)
    assert cluster.run(script, code=5) == 5
    assert cluster.arguments("python") == ["-m", "starzoo.cli", *words]
    assert "signal" not in directives(script)


@pytest.mark.parametrize("option", [{"nodes": 2}, {"requeue": True}], ids=str)
def test_other_commands_do_not_run_on_several_nodes_or_queue_again(option):
    with pytest.raises(UsageError, match="only fit-star runs on several nodes, and says when it is to be queued again"):
        script_of(["train", "resnet18", "--out", "zoo"], **option)


@pytest.mark.parametrize(
    "option",
    [
        *({"job_name": name} for name in ("", "a b", "-x", "a\n#SBATCH --x")),
        *({"partition": name} for name in ("", "a b", "a\nb", "-p")),
        *({"account": name} for name in ("", "a b", "a;b")),
        *({"time": text} for text in ("", "soon", "8h", "8:0:00", "1:00:00:00", "8:00:00\n")),
        *({"nodes": 0}, {"gpus": -1}, {"cpus": 0}),
    ],
    ids=str,
)
def test_what_does_not_belong_into_a_directive_is_refused(option):
    [name] = option
    with pytest.raises(UsageError, match=rf"configuration {name}: "):
        script_of(**option)


@pytest.mark.parametrize("text", ["90", "90:00", "8:00:00", "2-00", "2-12:30", "2-00:00:00"])
def test_every_way_to_write_a_time_of_slurm_is_taken(text):
    assert directives(script_of(time=text))["time"] == text


SBATCH = """
    import sys
    open("submitted", "w").write(sys.stdin.read())
    print("4242;cluster") if sys.argv[1:] == ["--parsable"] else sys.exit(9)
    """


def test_a_script_is_submitted_on_stdin(cluster, monkeypatch):
    cluster.install("sbatch", SBATCH)
    monkeypatch.setenv("PATH", str(cluster.bin), prepend=os.pathsep)
    monkeypatch.chdir(cluster.folder)
    started = launch(parse_command(FIT), "slurm", {"gpus": 2})
    assert started.job == "4242"
    assert (cluster.folder / "submitted").read_text() == started.script == script_of(gpus=2)


def test_what_sbatch_says_against_a_script_is_shown(cluster, monkeypatch):
    cluster.install("sbatch", "\n    import sys\n    sys.exit('sbatch: error: invalid partition specified: nope')\n")
    monkeypatch.setenv("PATH", str(cluster.bin), prepend=os.pathsep)
    with pytest.raises(UsageError, match="sbatch refused the script: sbatch: error: invalid partition specified: nope"):
        launch(parse_command(FIT), "slurm", {"partition": "nope"})


def test_a_machine_without_sbatch_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch on this machine"):
        launch(parse_command(FIT), "slurm", {})


def test_an_option_of_the_other_kind_is_refused():
    with pytest.raises(UsageError, match="--flavor is no option of --on slurm"):
        script_of(flavor="l4x1")
    with pytest.raises(UsageError, match="--job-name is no option of --on hf-jobs"):
        launch(parse_command([*FIT, "--push-to", "me/star"]), "hf-jobs", {"job_name": "x"}, submit=False)


def pairs_of_the_page() -> list[tuple[str, str]]:
    """Every dry run of the page, with the block that follows it."""
    found = re.findall(r"```bash\n([^`]*?--dry-run[^`]*?)```\n.*?```bash\n(.*?)```", PAGE, re.DOTALL)
    return [(command.replace("\\\n", " "), printed) for command, printed in found]


@pytest.mark.parametrize(("command", "printed"), pairs_of_the_page(), ids=["slurm", "hf-jobs"])
def test_the_page_shows_what_the_command_prints(command, printed, capsys):
    program, *arguments = shlex.split(command)
    assert program == "starzoo"
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed


def test_every_command_line_of_the_page_parses():
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    tails = [
        shlex.split(line.partition("starzoo.cli ")[2]) for line in lines if re.match("(torchrun|accelerate) ", line)
    ]
    assert len(tails) >= 3
    for words in tails:
        assert parse_command(words).name == "fit-star"
