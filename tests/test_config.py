"""Configurations: what is refused, in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from starzoo import config
from starzoo.config import (
    AlignConfig,
    Baseline,
    Constant,
    DataConfig,
    EvalConfig,
    FrozenModel,
    Uniform,
    load_config,
    load_zoo_config,
)
from starzoo.errors import UsageError


def test_every_field_has_a_description() -> None:
    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, FrozenModel)]
    fields = {f"{kind.__name__}.{name}": info for kind in kinds for name, info in kind.model_fields.items()}
    assert "StarConfig.epochs" in fields
    assert [name for name, info in fields.items() if not (info.description or "").endswith(".")] == []


def test_a_method_has_its_name_in_the_singular_too() -> None:
    assert AlignConfig(method="weight").method == "weights"  # type: ignore[arg-type]


def test_a_value_of_other_data_goes_with_its_name() -> None:
    run = load_config(None, ["evaluate.ood.test_split=valid"], evaluate={"ood": "user/images"})
    assert run.evaluate.ood == (DataConfig(dataset="user/images", test_split="valid"),)


def test_a_split_that_is_named_twice_is_measured_once() -> None:
    assert EvalConfig(splits=("test", "train", "test")).splits == ("test", "train")
    assert load_config(evaluate={"splits": ["test", "test"]}).evaluate.splits == ("test",)


def test_no_split_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"configuration evaluate\.splits: .* at least 1 item"):
        load_config(overrides=["evaluate.splits=[]"])


@pytest.mark.parametrize("section", ["align", "star", "evaluate"])
@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_a_generator_refuses_are_refused_here(section: str, seed: int) -> None:
    with pytest.raises(UsageError, match=rf"configuration {section}\.seed: Input should be (greater|less) than"):
        load_config(overrides=[f"{section}.seed={seed}"])


def test_the_greatest_seed_is_one() -> None:
    assert load_config(overrides=[f"star.seed={2**32 - 1}"]).star.seed == 2**32 - 1


def test_a_range_of_t_that_is_turned_round_is_refused() -> None:
    message = r"configuration star\.t\.uniform: low is 0\.8, which is above high, 0\.2"
    with pytest.raises(UsageError, match=message):
        load_config(overrides=["star.t={kind: uniform, low: 0.8, high: 0.2}"])
    assert Uniform(low=0.5, high=0.5).low == 0.5


@pytest.mark.parametrize(
    "value",
    [
        "2024-13-45",
        "0b_",
        "9" * 5000,
        "[" * 3000,
        "{",
        "!!python/object:os.system x",
        "!!bool foo",
        "!!int _",
        "!!timestamp x",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_yaml_is_one_line(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--set: star\.epochs: expected a YAML value, got"):
        load_config(overrides=[f"star.epochs={value}"])
    file = tmp_path / "run.yaml"
    file.write_text(f"star:\n  epochs: {value}\n")
    with pytest.raises(UsageError, match=r"run\.yaml: cannot be read as YAML"):
        load_config(file)


def test_a_picture_of_one_point_is_refused() -> None:
    message = r"configuration evaluate\.loss_plane_points: expected 0 for no picture or 2 points and more, got 1"
    with pytest.raises(UsageError, match=message):
        load_config(overrides=["evaluate.loss_plane_points=1"])
    assert [EvalConfig(loss_plane_points=points).loss_plane_points for points in (0, 2)] == [0, 2]


def test_a_preset_gives_way_to_options_and_not_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("star: {lr: 0.3, epochs: 7, t: {kind: beta}}\n")
    run = load_config(file, preset="predictor", star={"kappa": 2.0})
    assert (run.star.lr, run.star.epochs, run.star.kappa, run.star.teachers) == (0.4, 7, 2.0, "all")
    assert (run.star.t, run.star.mu, run.star.realign_every) == (Constant(value=0.0), 0.0, 0)
    assert load_config(file, ["star.lr=0.1"], preset="predictor").star.lr == 0.1
    assert load_config(file, preset="connected") == load_config(file)
    with pytest.raises(UsageError, match="expected one of connected, predictor, got 'fast'"):
        load_config(preset="fast")


def test_a_star_may_leave_its_rate_open_and_a_zoo_may_not() -> None:
    assert load_config(star={"lr": "auto"}).star.lr == "auto"
    with pytest.raises(UsageError, match=r"expected a number as learning rate, got auto"):
        load_zoo_config(train={"lr": "auto"})
    with pytest.raises(UsageError, match="expected a precision of fp32 or bf16, got fp16"):
        load_zoo_config(train={"precision": "fp16"})


def test_all_baselines_have_one_name_together() -> None:
    assert load_config(evaluate={"baselines": ["all"]}).evaluate.baselines == get_args(Baseline)
    assert load_config(evaluate={"baselines": ["swa", "swa"]}).evaluate.baselines == ("swa",)


def test_a_misspelled_key_is_named_with_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"^configuration star\.epoch: no such setting") as caught:
        load_config(None, ["star.epoch=3"])
    assert caught.value.hint == "use epochs"
    with pytest.raises(UsageError) as caught:
        load_config(None, ["star.qqqq=3"])
    assert caught.value.hint.startswith("see starzoo fit-star --help")
