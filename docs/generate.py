"""Write the pages that are made from the code: one for each command, and one of all settings.

python docs/generate.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from starzoo.cli.main import app
from starzoo.config import FrozenModel, RunConfig, TransformConfig, ZooConfig

HERE = Path(__file__).parent
GLOBAL = {"json", "quiet", "debug", "help"}


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every generated page with its text."""
    group = typer.main.get_command(app)
    names = list(group.commands)  # type: ignore[attr-defined]
    for name in names:
        yield HERE / "commands" / f"{name}.md", _command_page(name, group.commands[name])  # type: ignore[attr-defined]
    lines = ["# Commands", "", "Every command takes `--json`, `--quiet`, `--debug` and `--help`.", ""]
    lines += ["| command | does |", "|---|---|"]
    for name in names:
        summary = group.commands[name].help.strip().splitlines()[0]  # type: ignore[attr-defined]
        lines.append(f"| [`starzoo {name}`]({name}.md) | {_cell(summary)} |")
    toctree = ["```{toctree}", ":hidden:", "", *names, "```"]
    yield HERE / "commands" / "index.md", "\n".join([*lines, "", *toctree, ""])
    yield HERE / "settings.md", _settings_page()


def _command_page(name: str, command: Any) -> str:
    description, _, example = command.help.partition("Example:")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name not in GLOBAL]
    words = [f"{each.metavar}{'...' if each.nargs == -1 else ''}" for each in arguments]
    usage = " ".join(["starzoo", name, *words])
    lines = [f"# starzoo {name}", "", _text(description), "", "```bash", _text(example), "```", ""]
    lines += ["```", f"{usage} [OPTIONS]", "```", ""]
    lines += ["| argument | |", "|---|---|"] if arguments else []
    lines += [f"| `{each.metavar or each.name}` | {_cell(each.help or '')} |" for each in arguments]
    panels = dict.fromkeys(each.rich_help_panel or "Options" for each in options if not each.hidden)
    for panel in panels:
        lines += ["", f"## {panel}", "", "| option | default | |", "|---|---|---|"]
        for each in options:
            if not each.hidden and (each.rich_help_panel or "Options") == panel:
                default = each.show_default if isinstance(each.show_default, str) else ""
                flags = ", ".join(f"`{flag}`" for flag in each.opts)
                lines.append(f"| {flags} | {_cell(default)} | {_cell(each.help or '')} |")
    return "\n".join([*lines, ""])


def _settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Every key of a configuration file (`--config`). `--set SECTION.KEY=VALUE` changes it too. `run.yaml` in the",
        "folder of a star has those of its run. `starzoo train` reads `data` and `train`, all other commands the rest.",
    ]
    sections = {**RunConfig.model_fields, **ZooConfig.model_fields}
    for name, info in sections.items():
        lines += ["", f"## {name}", "", *_table(_model_of(info))]
    lines += ["", "## data.transform", "", "With `data.augment=timm`.", "", *_table(TransformConfig)]
    return "\n".join([*lines, ""])


def _table(config: type[BaseModel]) -> Iterator[str]:
    yield "| key | default | |"
    yield "|---|---|---|"
    for name, info in config.model_fields.items():
        yield f"| `{name}` | {_default(info)} | {_cell(info.description or '')} |"


def _model_of(info: FieldInfo) -> type[FrozenModel]:
    assert isinstance(info.annotation, type)
    assert issubclass(info.annotation, FrozenModel)
    return info.annotation


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{value.model_dump(mode='json')}`"
    return "" if value in (None, ()) else f"`{list(value) if isinstance(value, tuple) else value}`"


def _text(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def main() -> None:
    """Write the pages."""
    for file, text in pages():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
