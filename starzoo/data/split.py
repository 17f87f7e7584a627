"""One split of a task: batches without augmentation for evaluation, shuffled and augmented ones for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from starzoo.config import Augmentation, TransformConfig
from starzoo.data.augmentation import training_transform
from starzoo.data.decoding import DecodedImages, image_loader, normalize
from starzoo.data.loader import Loader
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile, RawSplit
from starzoo.errors import UsageError

__all__ = ["Augmentation", "Loader", "Split"]

_ORDER, _AUGMENTATION, _SUBSET = 0, 1, 2  # independent streams of one seed
_PIXELS_PER_BATCH = 400_000
_MOST_KEPT = 4 * 2**30  # bytes


class Split:
    """The preprocessed images of one split and their labels.

    The geometric transform is timm's evaluation transform (resize, center crop). Augmentation acts on its result:
    a horizontal flip, and a random crop after padding by an eighth of the size with black. Only timm's training
    transform takes its place.
    Images have the channels-last memory format, and `labels` is int64 of shape (images,).
    """

    def __init__(
        self, records: RawSplit, preprocessing: Preprocessing, transform: TransformConfig | None = None
    ) -> None:
        self.name = records.name
        self.labels = torch.from_numpy(records.labels.copy())
        self.pixels = DecodedImages(records, preprocessing)
        self._preprocessing, self._transform = preprocessing, transform or TransformConfig()
        self._kept: tuple[object, list[Tensor]] = None, []

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def read_transformed(self) -> Callable[[ImageFile], Tensor]:
        """The function from a file to its pixels after timm's training transform; floats with random erasing."""
        transform = training_transform(self._transform, self._preprocessing)
        return image_loader(self._preprocessing, self.pixels.records.dataset, transform)

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return all images and labels at once, for small data."""
        return self.normalize(self.pixels[torch.arange(len(self))]).to(dtype), self.labels

    def images(
        self,
        batch_size: int,
        *,
        limit: int | None = None,
        seed: int = 0,
        augment: Augmentation = "none",
        draw: int = 0,
    ) -> Iterator[Tensor]:
        """Yield batches of images, of the whole split in the order of `labels` or of a random subset of `limit`."""
        indices = self.sample_indices(limit, seed)
        batches = list(torch.tensor_split(indices, -(-len(indices) // batch_size)))
        loader = Loader(self, batches, augment, self._augmentation_draws(seed, draw, augment))
        if augment == "timm" and 4 * len(indices) * math.prod(self.pixels.shape[1:]) <= _MOST_KEPT:
            key = batch_size, limit, seed, draw  # batch-norm statistics need the same images again and again
            if self._kept[0] != key:
                self._kept = key, [pixels.clone() for pixels, _ in loader.stored()]  # not in shared memory
            yield from map(self.normalize, self._kept[1])
        else:
            yield from (images for images, _ in loader)

    def labeled_images(self, *, limit: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
        """Return images without augmentation and their labels, in batches small enough to store all activations."""
        _, height, width, _ = self.pixels.shape
        batch_size = max(4, min(100, _PIXELS_PER_BATCH // (height * width)))
        batches = list(self.images(batch_size, limit=limit, seed=seed))
        return batches, self.labels[self.sample_indices(limit, seed)]

    def sample_indices(self, limit: int | None, seed: int = 0) -> Tensor:
        """Return the row numbers of a random subset, shape (images,); all in order if `limit` allows all."""
        if limit is None or limit >= len(self):
            return torch.arange(len(self))
        return torch.from_numpy(np.random.default_rng([_SUBSET, seed]).permutation(len(self))[:limit])

    def subset(self, indices: Tensor) -> Split:
        """Return the split of some rows, in their order."""
        records, rows = self.pixels.records, indices.numpy()
        chosen = replace(
            records, rows=records.rows.select(rows), labels=records.labels[rows], numbers=records.numbers[rows]
        )
        return Split(chosen, self._preprocessing, self._transform)

    def uncropped(self, records: RawSplit) -> Split:
        """Return a split of images that have the size and crop of this one's already."""
        return Split(records, self._preprocessing.model_copy(update={"crop_pct": 1.0, "crop_mode": "center"}))

    def loader(
        self,
        batch_size: int,
        *,
        epoch: int,
        seed: int,
        augment: Augmentation = "none",
        shuffle: bool = True,
        drop_last: bool = True,
        shard: int = 0,
        num_shards: int = 1,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Loader:
        """Return the batches of one epoch; order and augmentation depend on seed, epoch and image only."""
        if drop_last and batch_size > len(self):
            raise UsageError(
                self.pixels.records.dataset,
                f"a batch of {batch_size} images is more than the {len(self)} of split {self.name!r}",
                hint="use a smaller batch_size",
            )
        if drop_last and batch_size % num_shards:
            raise UsageError(
                "batch_size",
                f"expected a multiple of {num_shards} processes or draws, got {batch_size}",
                hint=f"use a batch_size that {num_shards} divides",
            )
        order = np.random.default_rng([_ORDER, seed, epoch]).permutation(len(self)) if shuffle else np.arange(len(self))
        if drop_last:
            order = order[: len(self) // batch_size * batch_size]
        batches = [batch[shard::num_shards] for batch in torch.split(torch.from_numpy(order), batch_size)]
        return Loader(self, batches, augment, self._augmentation_draws(seed, epoch, augment), workers, device)

    def _augmentation_draws(self, seed: int, epoch: int, augment: Augmentation) -> Tensor:
        rng = np.random.default_rng([_AUGMENTATION, seed, epoch])
        if augment == "timm":
            return torch.from_numpy(rng.integers(2**32, size=len(self)))  # a seed for each image
        draws = rng.random((len(self), 3), dtype=np.float32)
        if augment == "crop-alternating-flip":  # every second epoch flips the images that the others do not
            first = np.random.default_rng([_AUGMENTATION, seed, 0]).random((len(self), 3), dtype=np.float32)
            draws[:, 0] = (first[:, 0] + 0.5 * (epoch % 2)) % 1
        return torch.from_numpy(draws)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize pixels for the model: float32 of shape (batch, channels, height, width)."""
        return normalize(pixels, self._preprocessing)
