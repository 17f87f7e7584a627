"""What the README and the shipped configurations promise, held to the code."""

from __future__ import annotations

import inspect
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

import starzoo
from starzoo.cli.main import main
from starzoo.config import EvalConfig, RunConfig, StarConfig, TrainConfig, Uniform, load_config
from starzoo.workflows import quickstart as pipeline
from starzoo.workflows.quickstart import quickstart

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `starzoo …` line of the README and of docs/, as words."""
    shell = [block for text in (README, *PAGES) for block in blocks("bash", text) if not block.startswith("#!")]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    found = [tuple(shlex.split(part)) for part in parts if part.startswith("starzoo ")]
    return [list(words) for words in dict.fromkeys(found)]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_option_of_the_readme_and_the_pages_exists(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words[1], "--help"]) == 0
    text = capsys.readouterr().out
    own = words[: words.index("--")] if "--" in words else words  # after -- stands another command
    for option in (word.partition("=")[0] for word in own if word.startswith("--")):
        assert option in text


def test_the_readme_has_the_two_commands_and_every_command_in_its_table() -> None:
    bash = "\n".join(blocks("bash"))
    assert "pip install -e . && starzoo quickstart" in bash
    assert "pip install -e '.[dev]' && pytest" in bash
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    named = set(re.findall(r"`([a-z-]+)`", README.partition("## Commands")[2].partition("## ")[0]))
    files = {path.stem.replace("import_", "import").replace("_", "-") for path in (ROOT / "cli").glob("*.py")}
    helpers = {
        "--init--",
        "--main--",
        "main",
        "command",
        "field-options",
        "inspect-tables",
        "options",
        "output",
        "parsing",
        "plan-tables",
        "tables",
    }
    assert files - helpers <= named


def test_python_snippets_compile() -> None:
    assert blocks("python")
    for block in blocks("python"):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configurations_load_and_say_something(file: Path) -> None:
    assert load_config(file) != RunConfig()


def test_the_papers_configuration_is_the_papers_algorithm() -> None:
    found = load_config(ROOT / "configs" / "paper.yaml")
    assert (found.align.method, found.star.init, found.star.source_order) == ("weights", "random", "independent")
    assert (found.star.t, found.star.mu, found.star.realign_every) == (Uniform(low=0, high=1), 0.0, 1)
    assert (found.star.lr, found.star.weight_decay, found.star.batch_size, found.star.epochs) == (0.1, 5e-4, 128, 200)


@pytest.mark.usefixtures("prepared_workers")
def test_the_quickstart_makes_a_star_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code as on the command line, with three small members instead of sixteen, fewer epochs and points."""
    monkeypatch.setattr(pipeline, "QUICKSTART_SOURCES", 2)
    monkeypatch.setattr(pipeline, "QUICKSTART_HOLDOUTS", 1)
    monkeypatch.setattr(pipeline, "QUICKSTART_ARGS", {**pipeline.QUICKSTART_ARGS, "channels": [8, 16, 16, 16]})
    monkeypatch.setattr(pipeline, "QUICKSTART_RECIPE", TrainConfig(epochs=6))
    monkeypatch.setattr(pipeline, "QUICKSTART_STAR", StarConfig(epochs=2))
    few = EvalConfig(points=3, source_pairs=1, bma_samples=2, batch_norm_images=400)
    monkeypatch.setattr(pipeline, "RunConfig", partial(RunConfig, evaluate=few))
    report = quickstart(tmp_path)
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["seed-0", "seed-1", "seed-2"]
    found = report.manifest.evaluation
    assert found is not None
    assert found.qualities_of("star")[0].accuracy > 0.9
    assert found.summarize("star-heldout").mean < found.summarize("source-source-unaligned").mean
    assert "digits-star" in (report.folder / "README.md").read_text()


def test_checkpoints_saved_as_the_page_says_keep_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torch

    from starzoo.models.timm_folder import read_architecture

    page = (ROOT / "docs" / "fit-on-checkpoints.md").read_text(encoding="utf-8")
    (snippet,) = blocks("python", page)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(snippet.partition("for seed")[0], names)
    for seed in range(3):
        model = timm.create_model("resnet18", num_classes=10, in_chans=1, **names["MODEL_ARGS"])
        torch.save(model.state_dict(), f"checkpoint-{seed}.pth")
    exec(snippet, names)
    assert read_architecture(tmp_path / "mine" / "seed-2").label_names == tuple("0123456789")


@pytest.mark.parametrize("name", [name for name in starzoo.__all__ if inspect.isfunction(getattr(starzoo, name))])
def test_what_starzoo_exports_documents_each_argument_and_what_it_returns(name: str) -> None:
    function = getattr(starzoo, name)
    documented = inspect.getdoc(function) or ""
    assert re.findall(
        r"^    \**(\w+): ", documented.partition("Args:")[2].partition("Returns:")[0], re.MULTILINE
    ) == list(inspect.signature(function).parameters)
    assert "Returns:" in documented
