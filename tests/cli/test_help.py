from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys

import pytest
import typer

import starzoo
from starzoo.cli.main import app

COMMANDS = [
    "quickstart",
    "train",
    "import",
    "pull",
    "plan",
    "inspect",
    "align",
    "fit-star",
    "evaluate",
    "predict",
    "join",
    "verify",
    "card",
    "push",
    "list",
    "doctor",
]
HEAVY = ["torch", "timm", "numpy", "datasets", "huggingface_hub", "accelerate", "matplotlib", "scipy"]
LIST_HEAVY_MODULES = f"""
import sys
from starzoo.cli.main import main
for arguments in sys.argv[1:]:
    code = main(arguments.split())
    print(arguments, code, *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def heavy_modules(*commands: str, code: str = LIST_HEAVY_MODULES) -> list[str]:
    """Each command with its exit code and the heavy modules that are loaded after it, all in one fresh process."""
    ended = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    return ended.stderr.splitlines()


def group() -> typer.core.TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    return command


def test_the_list_of_commands_is_complete():
    assert list(group().commands) == COMMANDS


def test_help_imports_nothing_heavy():
    commands = ["--version", "--help", *(f"{command} --help" for command in COMMANDS)]
    assert heavy_modules(*commands) == [f"{command} 0" for command in commands]


def test_the_check_for_heavy_modules_can_fail():
    assert heavy_modules("--version", code=f"import numpy{LIST_HEAVY_MODULES}") == ["--version 0 numpy"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    ended = run(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(rf"Example:\s+starzoo {command} \S", ended.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_a_command_line_that_parses(command):
    parser = group().commands[command]
    assert parser.help
    example = re.search(r"Example:\s+(starzoo .*)", parser.help)
    assert example
    program, name, *arguments = shlex.split(example[1])
    assert (program, name) == ("starzoo", command)
    context = parser.make_context(name, arguments)
    assert context.params["json"] is False


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_options_of_output(command):
    options = {option for parameter in group().commands[command].params for option in parameter.opts}
    assert {"--json", "--quiet", "--debug"} <= options


def test_main_help_lists_every_command(run):
    ended = run("--help")
    assert ended.code == 0
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\s+[A-Z]", ended.out)] == []


def test_module_runs_as_a_program():
    ended = subprocess.run(
        [sys.executable, "-m", "starzoo.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"starzoo {starzoo.__version__}\n"


def test_a_worker_that_imports_the_program_does_not_run_it(capsys):
    runpy.run_module("starzoo.cli.__main__", run_name="__mp_main__")
    assert capsys.readouterr() == ("", "")


def test_the_quickstart_says_what_its_seed_changes():
    [seed] = [parameter for parameter in group().commands["quickstart"].params if "--seed" in parameter.opts]
    assert seed.help == "Seed of the star; the zoo is always the same."
