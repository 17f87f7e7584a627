from __future__ import annotations

import pytest
import typer

from starzoo.cli import options
from starzoo.cli.main import app
from starzoo.config import (
    AlignConfig,
    DataConfig,
    EvalConfig,
    FrozenModel,
    RunConfig,
    StarConfig,
    TrainConfig,
    ZooConfig,
    load_zoo_config,
)
from starzoo.errors import UsageError

CONFIGS: dict[str | None, type[FrozenModel]] = {
    "Images": DataConfig,
    "Training": TrainConfig,
    "Alignment": AlignConfig,
    "Star": StarConfig,
    "Evaluation": EvalConfig,
}


def generated_options() -> list[tuple[str, typer.core.TyperOption, FrozenModel]]:
    """The options of all commands that stand for a field, each with its command and its configuration's defaults."""
    program = typer.main.get_command(app)
    assert isinstance(program, typer.core.TyperGroup)
    return [
        (name, option, CONFIGS[option.rich_help_panel]())
        for name, command in program.commands.items()
        for option in command.params
        if isinstance(option, typer.core.TyperOption) and option.rich_help_panel in CONFIGS
    ]


def test_the_help_of_an_option_is_the_description_of_its_field():
    shown = generated_options()
    assert {command for command, _, _ in shown} == {
        *["train", "plan", "align", "fit-star", "evaluate", "predict", "join"]
    }
    for command, option, config in shown:
        description = type(config).model_fields[option.name].description
        choices_and_repeats = option.help.removeprefix(description)
        assert choices_and_repeats == "" or choices_and_repeats.startswith((" One of: ", " Repeatable.")), command


def test_the_default_that_the_help_shows_is_that_of_the_configuration():
    expected = {
        **dict.fromkeys(["evaluate", "predict", "join"], "the star's"),
        "align": False,
    }
    for command, option, config in generated_options():
        default = getattr(config, option.name)
        text = ", ".join(default) if isinstance(default, tuple) else str(default)
        own = False if default in (None, ()) else text
        panel_of_align = command == "align" and option.rich_help_panel != "Images"
        assert option.show_default == (own if panel_of_align else expected.get(command, own)), (command, option.name)


def test_an_option_names_the_choices_of_its_field():
    [method] = [option for name, option, _ in generated_options() if (name, option.name) == ("align", "method")]
    assert method.help.endswith("One of: weights, balanced-weights, activations, activations-gradients.")


def test_nothing_given_is_the_default():
    assert options.load_run(None, None) == RunConfig()
    assert load_zoo_config() == ZooConfig()


def test_file_then_options_then_assignments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("star: {epochs: 3, lr: 0.3, mu: 0.5}\ndata: {dataset: somewhere}\n")
    run = options.load_run(file, ["star.epochs=7", "star.t={kind: beta}"], star={"epochs": 5, "lr": 0.2})
    assert (run.star.epochs, run.star.lr, run.star.mu, run.star.t.kind) == (7, 0.2, 0.5, "beta")
    assert run.data.dataset == "somewhere"


def test_seed_seeds_everything_that_is_random():
    run = options.load_run(None, None, 5, star={"epochs": 2})
    assert (run.align.seed, run.star.seed, run.evaluate.seed, run.star.epochs) == (5, 5, 5, 2)


def test_a_zoo_is_what_file_options_and_assignments_say(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {dataset: somewhere, name: en}\ntrain: {epochs: 2, lr: 0.3}\nstar: {epochs: 7}\n")
    sections = {"data": {"revision": "abc"}, "train": {"epochs": 3, "optimizer": "adamw"}}
    zoo = load_zoo_config(file, ["train.momentum=0.8"], **sections)
    assert zoo.train == TrainConfig(epochs=3, lr=0.3, momentum=0.8, optimizer="adamw")
    assert zoo.data == DataConfig(dataset="somewhere", name="en", revision="abc")
    assert options.load_run(file, None).star.epochs == 7  # one file serves both


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=1", "batch_size: Input should be greater than or equal to 2"),
        ("star.epochs=1", "configuration star: no such setting"),
    ],
)
def test_what_a_zoo_cannot_be_is_refused(override, message):
    with pytest.raises(UsageError, match=message):
        load_zoo_config(overrides=[override])
