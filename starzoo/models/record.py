"""The record of one model: its origin, pinned."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from starzoo.config import Augmentation, FrozenModel, Name, Number, Positive
from starzoo.data.preprocessing import Preprocessing

__all__ = ["RESERVED_NAMES", "ModelRecord", "Names", "Table"]

RESERVED_NAMES = frozenset({"star", "naive mean", "aligned mean", "student-mean", "trained-mean"})
"""Names of an evaluation's own models, which no other model may have."""

Names = Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=1_000_000)]
Table = Annotated[dict[Name, Name], Field(max_length=1000)]


class ModelRecord(FrozenModel):
    """One model that a star was fitted on or tested against, pinned.

    Attributes:
        name: Its name in tables and plots, unique in the star.
        repo: Its Hub repository, or None for a local folder.
        sha: The commit of the repository.
        files: SHA-256 of its files, by name.
        license: Its license identifier, or None when it states none.
        dtype: The type of its stored weights, for example `bfloat16`; it is loaded as float32. None in old manifests.
        preprocessing: The image transform that its config.json states; the star's may crop images in another way.
        label_names: Its own class order where that was permuted into the star's, else None. For a model without label
            names it is the order in which its accuracy is above chance.
        steps: Training steps, where `starzoo train` recorded them beside it; else None.
        images: The `data_fingerprint` of the images that it was trained on, where it is recorded like the steps.
        augment: How these images were augmented, where it is recorded like the steps.
        optimizer: The optimizer that trained it, where it is recorded like the steps.
        lr: Its highest learning rate, where it is recorded like the steps.
        estimated: Whether its own batch-norm statistics were broken, so that estimated ones were used.
    """

    name: Name
    repo: Annotated[str, Field(max_length=1000)] | None = None
    sha: Name | None = None
    files: Table = {}
    license: Annotated[str, Field(max_length=1000)] | None = None
    dtype: Name | None = None
    preprocessing: Preprocessing | None = None
    label_names: Names | None = None
    steps: Number | None = None
    images: Name | None = None
    augment: Augmentation | None = None
    optimizer: Name | None = None
    lr: Positive | None = None
    estimated: bool = False

    @property
    def pinned(self) -> str | None:
        """The unambiguous reference of its commit on the Hub; None for a local folder."""
        return f"hf-hub:{self.repo}@{self.sha}" if self.repo and self.sha else None
