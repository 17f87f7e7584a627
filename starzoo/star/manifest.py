"""star.json: the record of a star. Needs neither torch nor the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from starzoo.config import Finite, FrozenModel, Name, Number, Positive, RunConfig, Share, StarConfig
from starzoo.errors import UntrustedInputError
from starzoo.evaluate.results import Evaluation
from starzoo.hub.names import is_repo
from starzoo.models.architecture import Architecture
from starzoo.models.record import RESERVED_NAMES, ModelRecord, Names, Table
from starzoo.strict_json import read_json

__all__ = ["MANIFEST", "StarManifest", "read_manifest"]

MANIFEST = "star.json"
ModelPool = Field(max_length=1000)

_LIMIT = 10_000_000  # bytes: some hundred models, each with thousands of label names of its own
_SHOWN = 200  # characters of what is wrong, and of where


class RateTrial(FrozenModel):
    """A short fit at one learning rate.

    Attributes:
        lr: The highest rate.
        share: The share of the fit's steps that it took.
        midpoint_loss: The mean loss half-way between the star and each source, in nats; None where it is not finite.
    """

    lr: Positive
    share: Share
    midpoint_loss: Finite | None = None


class StarManifest(FrozenModel):
    """Everything about a star but its weights.

    Attributes:
        schema_version: Version of this format.
        name: The star's name, the title of its card.
        repo: The repository that it was last published in, or None.
        chosen_license: The license that its publisher chose, or None for that of its sources.
        files: SHA-256 of the star's own configuration, weights and permutations, by name.
        architecture: The timm architecture of star and sources.
        sources: The models that the star was fitted on.
        holdouts: The models that it never saw.
        config: The run's configuration, which replays it.
        data_fingerprint: Hash of the images and labels that were used, with the classes in the data set's own order.
        data_label_names: The data set's own class order, where it was brought into that of the models; else None.
        parameters: Number of parameters.
        groups: Number of permutation groups of the architecture.
        coverage: Share of parameters in tensors that a group permutes.
        rate: The learning rate that short trials chose (`starzoo.star.rate`); None where it was given.
        rate_trials: These trials.
        history: One record per epoch.
        changes: What was changed when the run was resumed: with any, the configuration does not replay it bit for bit.
        steps: Training steps of the fit; None in old manifests.
        draws: Draws of (source, t) in each step, over all processes; None in old manifests.
        evaluation: What was measured, or None before that.
        software: Versions by package.
    """

    schema_version: Literal[1] = 1
    name: Name
    repo: Name | None = None
    chosen_license: Name | None = None
    files: Table = {}
    architecture: Architecture
    sources: Annotated[tuple[ModelRecord, ...], ModelPool, Field(min_length=2)]
    holdouts: Annotated[tuple[ModelRecord, ...], ModelPool] = ()
    config: RunConfig
    data_fingerprint: Name
    data_label_names: Names | None = None
    parameters: Number = 0
    groups: Number = 0
    coverage: Share = 0.0
    rate: Positive | None = None
    rate_trials: Annotated[tuple[RateTrial, ...], Field(max_length=100)] = ()
    history: Annotated[tuple[dict[Name, Finite], ...], Field(max_length=1_000_000)] = ()
    changes: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()
    steps: Number | None = None
    draws: Number | None = None
    evaluation: Evaluation | None = None
    software: Table = {}

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, repo: str | None) -> str | None:
        if repo is not None and not is_repo(repo):
            raise ValueError("expected user/name")
        return repo

    @model_validator(mode="after")
    def _names_are_unique(self) -> StarManifest:
        names = [model.name for model in (*self.sources, *self.holdouts)]
        if len(set(names)) < len(names):
            raise ValueError("two models have one name")
        if taken := RESERVED_NAMES.intersection(names):
            raise ValueError(f"a model has the name {min(taken)!r}, which an evaluation gives to one of its own")
        return self

    @property
    def fitted_config(self) -> StarConfig:
        """The settings of the fit, with the rate that was chosen and the epochs that it took."""
        return self.star_config.model_copy(update={"epochs": len(self.history)})

    @property
    def star_config(self) -> StarConfig:
        """The settings of the fit, with the rate that was chosen."""
        return self.config.star.model_copy(update={"lr": self.rate}) if self.rate else self.config.star


def read_manifest(file: Path) -> StarManifest:
    """Read a star.json."""
    hint = "give the folder of a star, which starzoo fit-star writes"
    if not os.path.lexists(file):
        raise UntrustedInputError(str(file), "no manifest of a star: no such file", hint=hint)
    try:
        return StarManifest.model_validate(read_json(file, _LIMIT))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:_SHOWN]
        what = f"no manifest of a star: {where}: {first['msg'][:_SHOWN]}"
        raise UntrustedInputError(str(file), what, hint=hint) from error
