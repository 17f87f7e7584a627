"""One split of a task: batches without augmentation for evaluation, shuffled and augmented ones for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from starzoo.config import Augmentation
from starzoo.data.decoding import DecodedImages, normalize
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import RawSplit
from starzoo.errors import UsageError
from starzoo.parallel import threaded_map

__all__ = ["Augmentation", "Loader", "Split"]

_ORDER, _AUGMENTATION, _SUBSET = 0, 1, 2  # independent streams of one seed
_PIXELS_PER_BATCH = 400_000


class Split:
    """The preprocessed images of one split, in memory, and their labels.

    The geometric transform is timm's evaluation transform (resize, center crop). Augmentation acts on its result:
    a horizontal flip, and a random crop after padding by an eighth of the size with black.
    Images have the channels-last memory format, and `labels` is int64 of shape (images,).
    """

    def __init__(self, records: RawSplit, preprocessing: Preprocessing) -> None:
        self.name = records.name
        self.labels = torch.from_numpy(records.labels.copy())
        self.pixels = DecodedImages(records, preprocessing)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return all images and labels at once, for small data."""
        return self.normalize(self.pixels[torch.arange(len(self))]).to(dtype), self.labels

    def images(
        self, batch_size: int, *, limit: int | None = None, seed: int = 0, augment: Augmentation = "none"
    ) -> Iterator[Tensor]:
        """Yield batches of images, of the whole split in the order of `labels` or of a random subset of `limit`."""
        indices = self.sample_indices(limit, seed)
        batches = list(torch.tensor_split(indices, -(-len(indices) // batch_size)))
        for images, _ in Loader(self, batches, augment, self._augmentation_draws(seed, 0, augment)):
            yield images

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
        workers: int = 0,
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
        return Loader(self, batches, augment, self._augmentation_draws(seed, epoch, augment), workers)

    def _augmentation_draws(self, seed: int, epoch: int, augment: Augmentation) -> Tensor:
        draws = np.random.default_rng([_AUGMENTATION, seed, epoch]).random((len(self), 3), dtype=np.float32)
        if augment == "crop-alternating-flip":  # every second epoch flips the images that the others do not
            first = np.random.default_rng([_AUGMENTATION, seed, 0]).random((len(self), 3), dtype=np.float32)
            draws[:, 0] = (first[:, 0] + 0.5 * (epoch % 2)) % 1
        return torch.from_numpy(draws)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize pixels for the model: float32 of shape (batch, channels, height, width)."""
        return normalize(pixels, self._preprocessing)


@dataclass(frozen=True)
class Loader:
    """The batches of one epoch, or a shard of each."""

    split: Split
    batches: list[Tensor]  # row numbers
    augment: Augmentation
    draws: Tensor  # in [0, 1), for every image of the split: flip, vertical and horizontal offset
    workers: int = 0  # threads that prepare batches ahead

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images of shape (batch, channels, height, width) and labels of shape (batch,)."""
        return threaded_map(self._batch, self.batches, self.workers + 1 if self.workers else 0)

    def skip(self, batches: int) -> Loader:
        """Return a loader without the first batches, for a resumed run."""
        return replace(self, batches=self.batches[batches:])

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.split.pixels[indices]
        if self.augment != "none":
            pixels = _augment(pixels, self.draws[indices], crop=self.augment.startswith("crop"))
        return self.split.normalize(pixels), self.split.labels[indices]


def _augment(pixels: Tensor, draws: Tensor, *, crop: bool) -> Tensor:
    """Flip and, with `crop`, randomly crop all images of a batch by one gather."""
    batch, height, width, _ = pixels.shape
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns)
    if crop:
        vertical, horizontal = height // 8, width // 8
        pixels = pad(pixels, (0, 0, horizontal, horizontal, vertical, vertical))
        rows = rows + (draws[:, 1:2] * (2 * vertical + 1)).long()
        columns = columns + (draws[:, 2:] * (2 * horizontal + 1)).long()
    return pixels[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
