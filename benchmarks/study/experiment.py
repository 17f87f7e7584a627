"""An experiment as its YAML file says it: one zoo, and the ways to make one model of its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from benchmarks.zoos import RECIPES
from starzoo.config import EvalConfig, FrozenModel, StarConfig, load_config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "study"


def _known(zoo: str) -> str:
    if zoo not in RECIPES:
        raise ValueError(f"no such zoo; there are {', '.join(RECIPES)}")
    return zoo


def _for_tuning(zoo: str) -> str:
    if not zoo.startswith("tuning-"):
        raise ValueError(f"{zoo} is reported; settings are chosen on a zoo named tuning-…")
    return zoo


ZooName = Annotated[str, AfterValidator(_known)]


class Variant(FrozenModel):
    """One way to make one model of the sources; what it does not say is as in the experiment.

    Attributes:
        config: The configuration file that its settings of the star start from; starzoo's defaults when not given.
        star: Settings of the star beside those of the experiment.
        align: How the sources are matched while the star is fitted; as everywhere when not given.
        zoo: The recipe of its members.
        sources: How many there are.
        x: Its place on the horizontal axis of the experiment's plot.
    """

    config: str | None = None
    star: dict[str, Any] = {}
    align: dict[str, Any] = {}
    zoo: ZooName | None = None
    sources: int | None = Field(None, ge=1)
    x: float | None = None


class Experiment(FrozenModel):
    """What is compared, on what, and how it is shown.

    Attributes:
        title: A heading.
        question: What it asks.
        reading: What its figures say, in words.
        zoo: The recipe of the members (benchmarks/zoos.py).
        tuned_on: The zoo on whose validation images settings were chosen (benchmarks/tuning.py); it has other members.
        sources: How many of them the stars are fitted on; each next one of the zoo is a held-out.
        holdouts: How many held-outs there are.
        strangers: Held-outs that were trained differently: what they are called, and the recipe.
        star: Settings of all stars but those that a variant sets.
        evaluate: How paths are measured.
        seeds: Seeds of the stars.
        plot: What is drawn: the paths of the variants, or the barrier over each one's `x`.
        x_label: What `x` is.
        variants: What is compared.
    """

    title: str
    question: str
    reading: str = ""
    zoo: ZooName
    tuned_on: Annotated[str, AfterValidator(_known), AfterValidator(_for_tuning)] = "tuning-resnet"
    sources: int = 8
    holdouts: int = 5
    strangers: dict[str, ZooName] = {}
    star: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    seeds: tuple[int, ...] = (0, 1, 2)
    plot: Literal["paths", "numbers"] | None = None
    x_label: str = ""
    variants: dict[str, Variant]

    def zoo_of(self, variant: str) -> str:
        """The recipe of a variant's members."""
        return self.variants[variant].zoo or self.zoo

    def sources_of(self, variant: str) -> int:
        """How many sources a variant has."""
        return self.variants[variant].sources or self.sources

    def star_of(self, variant: str, seed: int) -> StarConfig:
        """The settings of a variant's star; where both say something, the variant's win over the experiment's."""
        chosen = self.variants[variant]
        base = load_config(ROOT / chosen.config).star if chosen.config else StarConfig()
        return StarConfig.model_validate({**base.model_dump(), **self.star, **chosen.star, "seed": seed})

    def evaluation(self, pairs: int) -> EvalConfig:
        """What is measured of each variant: its paths to held-outs, and of the zoo so many regular–regular ones."""
        return EvalConfig.model_validate({"sources": 0, "bma_samples": 0, **self.evaluate, "source_pairs": pairs})


def load_experiment(file: Path) -> Experiment:
    """Read an experiment's file."""
    return Experiment.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def results_file(file: Path) -> Path:
    """Where the results of an experiment's file are kept."""
    return RESULTS / f"{file.stem}.json"
