"""`starzoo launch`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import typer

from .options import given
from .output import Output, Verbatim
from .parsing import parse_command


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """The fields of `starzoo.launch.Slurm`."""

    title: ClassVar = "SLURM"
    nodes: Annotated[int | None, typer.Option(min=1, help="1 when not given.")] = None
    gpus: Annotated[int | None, typer.Option(min=0, help="Of each node, a process on each; 1 when not given.")] = None
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of each node; the cluster decides otherwise.")] = None
    time: Annotated[str | None, typer.Option(metavar="HH:MM:SS", help="Time limit; 24:00:00 when not given.")] = None
    job_name: Annotated[str | None, typer.Option(help="starzoo when not given.")] = None
    partition: Annotated[str | None, typer.Option(help="Where the job is queued.")] = None
    account: Annotated[str | None, typer.Option(help="Who pays for it.")] = None
    requeue: Annotated[bool | None, typer.Option("--requeue", help="Go on in another job after the limit.")] = None


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The fields of `starzoo.launch.HfJobs`."""

    title: ClassVar = "Hugging Face Jobs"
    flavor: Annotated[str | None, typer.Option(help="Hardware, as a10g-small; cpu-basic when not given.")] = None
    timeout: Annotated[str | None, typer.Option(help="As 90m or 8h; 30m when not given.")] = None
    image: Annotated[str | None, typer.Option(help="Docker image; python:3.12 when not given.")] = None
    package: Annotated[
        str | None, typer.Option(help="starzoo, as pip installs it (git+https://…); not for an --image that has it.")
    ] = None
    namespace: Annotated[str | None, typer.Option(help="The user or organisation that pays for it.")] = None


def launch(
    out: Output,
    words: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, after --.")],
    on: Annotated[Literal["slurm", "hf-jobs"], typer.Option("--on", help="What runs it.")],
    slurm: SlurmOptions,
    jobs: JobOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted.")] = False,
) -> None:
    """Run a command of starzoo on a cluster.

    Example:
        starzoo launch --on slurm --nodes 2 --gpus 4 --requeue -- fit-star user/a user/b --out star
    """
    from starzoo.launch import launch as launch_command

    started = launch_command(parse_command(words), on, {**given(slurm), **given(jobs)}, submit=not dry_run)
    if started.job is None:
        out.result(vars(started), brief=[Verbatim(started.script)], human=[Verbatim(started.script)])
    else:
        shown = f"job {started.job}" + (f": {started.url}" if started.url else "")
        out.result(vars(started), brief=[started.url or started.job], human=[shown])
