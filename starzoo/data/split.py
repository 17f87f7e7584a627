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
    """The images of one split as a model sees them, in memory, and their labels.

    The geometric transform is timm's evaluation transform (resize, center crop). Augmentation acts on its result:
    a horizontal flip, and a random crop after padding by an eighth of the size with black.
    Images are in channels-last memory layout.

    Attributes:
        name: The name of the split in its data set.
        labels: The class of every image, int64 of shape (images,).
    """

    def __init__(self, records: RawSplit, preprocessing: Preprocessing) -> None:
        self.name = records.name
        self.labels = torch.from_numpy(records.labels.copy())
        self.pixels = DecodedImages(records, preprocessing)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The whole split at once: small data only."""
        return self.normalize(self.pixels[torch.arange(len(self))]).to(dtype), self.labels

    def images(
        self, batch_size: int, *, limit: int | None = None, seed: int = 0, augment: Augmentation = "none"
    ) -> Iterator[Tensor]:
        """Images in batches, in the order of `labels` unless `limit` cuts them."""
        drawn = self.sample_indices(limit, seed)
        batches = list(torch.tensor_split(drawn, -(-len(drawn) // batch_size)))
        for images, _ in Loader(self, batches, augment, self._augmentation_draws(seed, epoch=0)):
            yield images

    def labeled_images(self, *, limit: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
        """Some un-augmented images to look into models with, in batches that leave room for all activations."""
        chosen = self.sample_indices(limit, seed)
        height, width = self.pixels[chosen[:1]].shape[1:3]
        batch_size = max(4, min(100, _PIXELS_PER_BATCH // (height * width)))
        return list(self.images(batch_size, limit=limit, seed=seed)), self.labels[chosen]

    def sample_indices(self, limit: int | None, seed: int = 0) -> Tensor:
        """Which images a limit leaves: their row numbers, shape (images,); all in order where there are not more."""
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
        """The batches of one epoch. Order and augmentation are functions of the seed, the epoch and the image alone."""
        where = self.pixels.records.dataset
        if drop_last and batch_size > len(self):
            raise UsageError(
                where,
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
        return Loader(self, batches, augment, self._augmentation_draws(seed, epoch), workers)

    def _augmentation_draws(self, seed: int, epoch: int) -> Tensor:
        draws = np.random.default_rng([_AUGMENTATION, seed, epoch]).random((len(self), 3), dtype=np.float32)
        return torch.from_numpy(draws)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels as the model takes them, float32 of shape (batch, channels, height, width)."""
        return normalize(pixels, self._preprocessing)


@dataclass(frozen=True)
class Loader:
    """The batches of one epoch, or a share of each.

    Attributes:
        split: Where the images are.
        batches: The row numbers of every batch.
        augment: What is done to the images.
        draws: Three random numbers in [0, 1) for every image of the split: flip, vertical and horizontal offset.
        workers: Threads that prepare batches ahead.
    """

    split: Split
    batches: list[Tensor]
    augment: Augmentation
    draws: Tensor
    workers: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images of shape (batch, channels, height, width) and labels of shape (batch,)."""
        return threaded_map(self._batch, self.batches, self.workers + 1 if self.workers else 0)

    def skip(self, batches: int) -> Loader:
        """The same without the first batches: where a resumed run goes on."""
        return replace(self, batches=self.batches[batches:])

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.split.pixels[indices]
        if self.augment != "none":
            pixels = _augment(pixels, self.draws[indices], crop=self.augment == "crop-flip")
        return self.split.normalize(pixels), self.split.labels[indices]


def _augment(pixels: Tensor, draws: Tensor, *, crop: bool) -> Tensor:
    """Flip, and crop where asked, all images of a batch by one gather."""
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
