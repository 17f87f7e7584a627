"""Run a command on a cluster: as a batch script for SLURM, or as a Hugging Face Job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from starzoo.config import Frozen, validate
from starzoo.errors import UsageError
from starzoo.hub.jobs import start_job

__all__ = ["Command", "HfJobs", "Launch", "Place", "Slurm", "launch"]

Place = Literal["slurm", "hf-jobs"]

_FROM_FOLDER = {"push", "card"}  # commands whose folder is no place for results, but what they read
_SHARED = "fit-star"  # the command whose processes share one run
_INPUTS = (
    "sources",
    "holdout",
    "fixed",
    "permutees",
    "star",
    "other_star",
    "images",
    "refs",
    "ref_or_arch",
    "config",
    "dataset",
    "ood",
)
_DATASETS = {"data.dataset", "evaluate.ood", "evaluate.ood.dataset"}  # as `--set` names them
_STATUS = "status.json"
_SECONDS_TO_STOP = 120
_PYTHON_IMAGE = "python:3.12"


def _written_as(form: str, like: str) -> AfterValidator:
    """A text that may go into a script or a request as it is."""

    def check(text: str) -> str:
        if not re.fullmatch(form, text, re.ASCII):
            raise ValueError(f"{text!r} is not written like {like}")
        return text

    return AfterValidator(check)


class Slurm(Frozen):
    """What a run asks SLURM for."""

    nodes: int = Field(1, ge=1)
    gpus: int = Field(1, ge=0, description="of each node; one process for each, or one process where there are none")
    cpus: int | None = Field(None, ge=1, description="cores of each node; as many as the cluster gives when not given")
    time: Annotated[str, _written_as(r"(\d+-)?\d+(:\d\d){0,2}", "8:00:00 or 2-00:00:00")] = "24:00:00"
    job_name: Annotated[str, _written_as(r"[\w.][\w.+-]*", "starzoo")] = "starzoo"
    partition: Annotated[str, _written_as(r"\w[\w.,+-]*", "gpu")] | None = None
    account: Annotated[str, _written_as(r"\w[\w.@+-]*", "my-project")] | None = None
    requeue: bool = Field(False, description="queue the job again when the run was stopped by the time limit")


class HfJobs(Frozen):
    """What a run asks Hugging Face Jobs for."""

    flavor: Annotated[str, _written_as(r"\w[\w.-]*", "a10g-small")] = "cpu-basic"
    timeout: Annotated[str, _written_as(r"\d+(\.\d+)?[smhd]?", "90m or 8h")] | None = None
    image: Annotated[str, _written_as(r"[\w.][\w./:@-]*", _PYTHON_IMAGE)] = _PYTHON_IMAGE
    package: str | None = Field(None, min_length=1, description="what pip installs first: starzoo, in some form")
    namespace: Annotated[str, _written_as(r"\w[\w.-]*", "my-organisation")] | None = None


@dataclass(frozen=True)
class Command:
    """A command of starzoo.

    Attributes:
        words: The command line without the program's name.
        values: What it says, by the names of the command's parameters.
    """

    words: Sequence[str]
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The command's name."""
        return self.words[0]

    @property
    def folder(self) -> Path | None:
        """The folder that it works in, where it has one."""
        return self.values.get("folder")

    @property
    def inputs(self) -> Iterator[str]:
        """The models, images and files that it reads."""
        for name in _INPUTS:
            value = self.values.get(name) or ()
            yield from map(str, value) if isinstance(value, list | tuple) else [str(value)]
        for assignment in self.values.get("overrides") or ():
            key, _, value = assignment.partition("=")
            if key.strip() in _DATASETS:
                yield value.strip()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command on a cluster.

    Attributes:
        on: The kind of cluster.
        script: What runs it: a batch script, or a command line of the `hf` program.
        job: The job's id, or None when nothing was submitted.
        url: The job's page, where it has one.
    """

    on: Place
    script: str
    job: str | None = None
    url: str | None = None


def launch(command: Command, on: Place, options: Mapping[str, Any], *, submit: bool = True) -> Launch:
    """Run a command on a cluster.

    Args:
        command: A command of starzoo.
        on: The kind of cluster.
        options: Fields of `Slurm` or of `HfJobs`.
        submit: Submit it; otherwise only say how.

    Returns:
        The script and the job.

    Raises:
        UsageError: An option is wrong or belongs to the other kind, or the command cannot run there.
    """
    kind, run = _PLACES[on]
    for name in options:
        if name not in kind.model_fields:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is no option of --on {on}", hint="see starzoo launch --help", subject=option)
    return run(command, validate(kind, options), submit)


def _launch_on_slurm(command: Command, slurm: Slurm, submit: bool) -> Launch:
    if command.name != _SHARED and (slurm.nodes > 1 or slurm.requeue):
        raise UsageError(
            f"only {_SHARED} runs on several nodes, and says when it is to be queued again",
            hint=f"launch {command.name} without --nodes and --requeue",
            subject="--nodes" if slurm.nodes > 1 else "--requeue",
        )
    script = _slurm_script(command, slurm)
    return Launch(on="slurm", script=script, job=_sbatch(script) if submit else None)


def _slurm_script(command: Command, slurm: Slurm) -> str:
    shared = command.name == _SHARED
    asked = {
        "job-name": slurm.job_name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": slurm.gpus or None,
        "cpus-per-task": slurm.cpus,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"USR1@{_SECONDS_TO_STOP}" if shared else None,
        "open-mode": "append" if slurm.requeue else None,
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]
    header = "\n".join(["#!/bin/bash", *directives, *["#SBATCH --requeue"] * slurm.requeue])
    run = (_SHARED_RUN if shared else _SINGLE_RUN).format(
        status=shlex.quote(str(Path(command.values["folder"]) / _STATUS)) if shared else None,
        cores=f" --cpus-per-task={slurm.cpus}" if slurm.cpus else "",
        nodes=slurm.nodes,
        processes=max(slurm.gpus, 1),
        words=shlex.join(command.words),
        requeue=_REQUEUE if slurm.requeue else "",
    )
    return f"{header}\n{run}"


_SINGLE_RUN = """
srun{cores} python -m starzoo.cli \\
    {words}
"""

_SHARED_RUN = """
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
status={status}
rm -f -- "$status"  # that of an earlier attempt

# Before the time limit SLURM sends USR1 to what srun starts, which is a shell on each node. It passes the signal on to
# the processes of the run: they write a checkpoint and end with code 75. torchrun, their parent, would die of it.
srun{cores} bash -c '
    (trap "" USR1 && exec "$@") & torchrun=$!
    trap "pkill -USR1 -P $torchrun" USR1 TERM
    while kill -0 "$torchrun" 2> /dev/null; do wait "$torchrun"; done
    wait "$torchrun"
' bash torchrun --nnodes {nodes} --nproc_per_node {processes} --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d \\
    --rdzv_endpoint "$host:$((20000 + SLURM_JOB_ID % 10000))" -m starzoo.cli \\
    {words}
code=$?

# torchrun ends with 1 whatever the run ended with: its own code is in its folder.
if [[ $code -ne 0 ]]; then
    said=$(sed -n 's/.*"exit_code": *\\([1-9][0-9]*\\).*/\\1/p' -- "$status" 2> /dev/null)
    code=${{said:-$code}}
fi
{requeue}exit "$code"
"""

_REQUEUE = """\
if [[ $code -eq 75 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


def _sbatch(script: str) -> str:
    """Submit a batch script; the job's id."""
    program = shutil.which("sbatch")
    if program is None:
        raise UsageError(
            "there is no sbatch on this machine",
            hint="run this where jobs are submitted, or print the script with --dry-run",
            subject="sbatch",
        )
    text = script.encode(errors="surrogateescape")
    ended = subprocess.run([program, "--parsable"], input=text, capture_output=True, check=False)
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip() or f"it ended with {ended.returncode}"
        raise UsageError(f"sbatch refused the script: {said}", hint="correct the options", subject="sbatch")
    return ended.stdout.decode().strip().partition(";")[0]


def _launch_on_hf_jobs(command: Command, jobs: HfJobs, submit: bool) -> Launch:
    _check_remote(command)
    if jobs.package is None and jobs.image == _PYTHON_IMAGE:
        raise UsageError(
            f"there is no starzoo in the image {jobs.image}",
            hint="say with --package what pip installs there, as git+https://…, or choose an --image that has starzoo",
            subject="--package",
        )
    processes = int((re.search(r"x(\d+)$", jobs.flavor) or ["", "1"])[1])  # l40sx4 has four GPUs
    shared = processes > 1 and command.name == _SHARED
    python = ["torchrun", "--standalone", "--nproc_per_node", str(processes)] if shared else ["python"]
    words = [*python, "-m", "starzoo.cli", *command.words]
    if jobs.package:
        words = ["bash", "-c", 'pip install --quiet "$0" && exec "$@"', jobs.package, *words]
    asked = jobs.model_dump(include={"flavor", "timeout", "namespace"}, exclude_none=True)
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    script = ["hf", "jobs", "run", "--detach", *options, "--secrets", "HF_TOKEN", "--", jobs.image, *words]
    started = start_job(jobs.image, words, **asked) if submit else None
    return Launch(
        on="hf-jobs",
        script=shlex.join(script) + "\n",
        job=started.id if started else None,
        url=started.url if started else None,
    )


def _check_remote(command: Command) -> None:
    """Make sure that a command needs nothing of this machine, and that its result outlives the job."""
    if command.name in _FROM_FOLDER:
        raise UsageError(
            f"{command.folder} lies on this machine, where a job cannot read it",
            hint=f"run starzoo {command.name} here",
            subject=str(command.folder),
        )
    if command.folder and not command.values.get("push_to"):
        raise UsageError(
            f"{command.name} would leave its result on the job's disk, which is gone when the job ends",
            hint=f"publish it: {_SHARED} … --push-to user/name",
            subject="--push-to",
        )
    for text in command.inputs:
        if text != "digits" and (text.startswith((".", "/", "~")) or os.path.exists(text)):  # noqa: PTH110 - never raises
            raise UsageError(
                f"{text} lies on this machine, where a job cannot read it",
                hint="name a repository (hf-hub:user/name is never a folder), or values with --set, not --config",
                subject=text,
            )


_PLACES: Mapping[Place, tuple[type[Frozen], Callable[[Command, Any, bool], Launch]]] = {
    "slurm": (Slurm, _launch_on_slurm),
    "hf-jobs": (HfJobs, _launch_on_hf_jobs),
}
