from __future__ import annotations

import re
from dataclasses import fields
from typing import get_type_hints

import pytest

from starzoo.cli import options
from starzoo.cli.options import ConfigOptions, DataOptions, FileOptions, StarOptions, TrainOptions
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, StarConfig, TrainConfig, ZooConfig
from starzoo.errors import UsageError

GROUPS = (
    (DataOptions, DataConfig),
    (TrainOptions, TrainConfig),
    (StarOptions, StarConfig),
    (options.AlignOptions, AlignConfig),
    (options.EvaluateOptions, EvalConfig),
)


@pytest.mark.parametrize(("group", "config"), GROUPS)
def test_every_option_is_a_field_of_its_configuration(group, config):
    names = {option.name for option in fields(group)}
    assert names
    assert names <= set(config.model_fields)


def test_the_help_of_an_option_says_the_default_of_its_configuration():
    said = {}
    for group, config in GROUPS:
        for name, hint in get_type_hints(group, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                if found := re.search(r"([\d.]+) by default", option.help or ""):
                    said[config.__name__, name] = float(found[1]), config.model_fields[name].default
    assert len(said) == 13
    assert {place: both for place, both in said.items() if both[0] != both[1]} == {}


def test_nothing_given_is_the_default():
    run = options.load_run(ConfigOptions(), data=options.given(DataOptions()))
    assert run == RunConfig()


def test_file_then_options_then_assignments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("star: {epochs: 3, lr: 0.3, mu: 0.5}\ndata: {dataset: somewhere}\n")
    config = ConfigOptions(config=file, overrides=["star.epochs=7", "star.t={kind: beta}"])
    run = options.load_run(config, star=options.given(StarOptions(epochs=5, lr=0.2)))
    assert (run.star.epochs, run.star.lr, run.star.mu, run.star.t.kind) == (7, 0.2, 0.5, "beta")
    assert run.data.dataset == "somewhere"


def test_seed_seeds_everything_that_is_random():
    run = options.load_run(ConfigOptions(seed=5), star={"epochs": 2})
    assert (run.align.seed, run.star.seed, run.evaluate.seed, run.star.epochs) == (5, 5, 5, 2)


def test_a_zoo_is_what_file_options_and_assignments_say(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {dataset: somewhere, name: en}\ntrain: {epochs: 2, lr: 0.3}\nstar: {epochs: 7}\n")
    config = FileOptions(config=file, overrides=["train.momentum=0.8"])
    zoo = options.load_zoo(config, DataOptions(revision="abc"), TrainOptions(epochs=3, optimizer="adamw"))
    assert zoo.train == TrainConfig(epochs=3, lr=0.3, momentum=0.8, optimizer="adamw")
    assert zoo.data == DataConfig(dataset="somewhere", name="en", revision="abc")
    assert options.load_run(ConfigOptions(config=file)).star.epochs == 7  # one file serves both


def test_nothing_given_is_the_default_zoo():
    assert options.load_zoo(FileOptions(), DataOptions(), TrainOptions()) == ZooConfig()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FileOptions(overrides=["train.batch_size=1"]), "batch_size: Input should be greater than or equal to 2"),
        (FileOptions(overrides=["star.epochs=1"]), "configuration star: Extra inputs are not permitted"),
    ],
)
def test_what_a_zoo_cannot_be_is_refused(config, message):
    with pytest.raises(UsageError, match=message):
        options.load_zoo(config, DataOptions(), TrainOptions())
