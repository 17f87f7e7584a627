"""Zoos of small converged networks: one per family of architectures on a subset of CIFAR-10, and one of the digits.

    python -m benchmarks.zoos vit --members 6

trains the members that runs/zoos/vit lacks, as many at a time as there are cores, and prints how good each one is. A
member takes one to three minutes on one core, and ends with at least 99 % of its training images right; one of the VGG
takes twenty, and ends with 89 to 99 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starzoo.config import DataConfig, TrainConfig
from starzoo.models.training import architecture_for, train_zoo
from starzoo.workflows.quickstart import QUICKSTART_ARGS

DATASET = "uoft-cs/cifar10"
OUT = Path("runs/zoos")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the members of one zoo have in common: a timm network, its data, and how it is trained.

    Attributes:
        model: The name in timm.
        model_args: Its arguments.
        train: How a member is trained.
        data: The images; those of CIFAR-10 are found where the caller says.
        image_size: Height and width of the images in pixels.
        first: The first member's seed.
        members: How many members `main` trains.
    """

    model: str
    model_args: Mapping[str, Any]
    train: TrainConfig
    data: DataConfig = DataConfig(dataset=DATASET, train_size=10_000, test_size=2000)
    image_size: int = 32
    first: int = 0
    members: int = 6

    def on(self, dataset: str) -> DataConfig:
        """The images, with those of CIFAR-10 from this data set on the Hub or in a folder."""
        return self.data.model_copy(update={"dataset": dataset}) if self.data.dataset == DATASET else self.data

    def seeds(self, count: int) -> range:
        """The seeds of so many members."""
        return range(self.first, self.first + count)


HALF = DataConfig(dataset=DATASET, train_size=5000, test_size=2000)
DIGITS = DataConfig(dataset="digits")
QUARTER = DataConfig(dataset=DATASET, train_size=2500, test_size=1000)
RESNET = {"layers": [1, 1, 1, 0], "channels": [64, 128, 256, 256], "zero_init_last": False}
HALF_RESNET = {**RESNET, "channels": [32, 64, 128, 128]}


RECIPES: dict[str, Recipe] = {
    "resnet": Recipe(
        model="resnet18",
        model_args=RESNET,
        train=TrainConfig(epochs=8, batch_size=128),
    ),
    # timm's VGG takes no narrower convolutions: an image costs ten times as much as in the other zoos, hence fewer of
    # them. SGD at the rates 0.1 and 0.02 leaves it at chance, as its head has no batch norm.
    "vgg": Recipe(
        model="vgg11_bn",
        model_args={"mlp_ratio": 0.0625},
        train=TrainConfig(epochs=14, batch_size=32, optimizer="adamw", lr=0.0005, weight_decay=0.01),
        data=QUARTER,
    ),
    # The same in small: a chain of convolutions with batch norm. Every block changes the width, so that without a
    # `downsample` there is no shortcut.
    "plain": Recipe(
        model="test_byobnet",
        model_args={
            "width_factor": 2,
            "output_stride": 8,
            "attn_layer": "",
            "downsample": "",
            "zero_init_last": False,
        },
        train=TrainConfig(epochs=10, batch_size=128),
    ),
    "densenet": Recipe(
        model="densenet121",
        model_args={"growth_rate": 24, "block_config": [3, 3, 3]},
        train=TrainConfig(epochs=14, batch_size=128),
    ),
    "convnext": Recipe(
        model="convnext_atto",
        model_args={"depths": [1, 1, 1, 1], "dims": [32, 64, 128, 256], "patch_size": 2},
        train=TrainConfig(epochs=20, optimizer="adamw", lr=0.004, weight_decay=0.01),
        data=HALF,
    ),
    "vit": Recipe(
        model="vit_tiny_patch16_224",
        model_args={
            "patch_size": 8,
            "embed_dim": 192,
            "depth": 2,
            "num_heads": 3,
            "mlp_ratio": 2,
            "class_token": False,
            "global_pool": "avg",
        },
        train=TrainConfig(epochs=32, batch_size=32, optimizer="adamw", lr=0.0005, weight_decay=0.01),
        data=HALF,
    ),
}


FAMILIES = tuple(RECIPES)
RECIPES |= {
    # The same network, narrower or deeper.
    "resnet-quarter": Recipe(
        model="resnet18",
        model_args={**RESNET, "channels": [16, 32, 64, 64]},
        train=TrainConfig(epochs=24, batch_size=128),
    ),
    "resnet-half": Recipe(
        model="resnet18",
        model_args=HALF_RESNET,
        train=TrainConfig(epochs=12, batch_size=128),
    ),
    "resnet-half-deep": Recipe(
        model="resnet18",
        model_args={**HALF_RESNET, "layers": [2, 2, 2, 0]},
        train=TrainConfig(epochs=12, batch_size=128),
    ),
    # The network of `resnet-half`, trained otherwise.
    "resnet-half-adamw": Recipe(
        model="resnet18",
        model_args=HALF_RESNET,
        train=TrainConfig(epochs=16, batch_size=128, optimizer="adamw", lr=0.002, weight_decay=0.01),
        members=3,
    ),
    "resnet-half-flip": Recipe(
        model="resnet18",
        model_args=HALF_RESNET,
        train=TrainConfig(epochs=24, batch_size=128),
        data=DataConfig(dataset=DATASET, train_size=10_000, test_size=2000, augment="flip"),
        members=3,
    ),
    "resnet-half-low-rate": Recipe(
        model="resnet18",
        model_args=HALF_RESNET,
        train=TrainConfig(epochs=20, batch_size=128, lr=0.01),
        members=3,
    ),
    # Not the zoo of the quickstart; the rate and κ of the defaults were chosen on this one.
    "digits": Recipe(
        model="resnet18",
        model_args=QUICKSTART_ARGS,
        train=TrainConfig(),
        data=DIGITS,
        image_size=16,
        first=100,
        members=17,
    ),
}
# At full size, for a GPU: the whole network and all images, enlarged, since its first layers halve them twice.
RECIPES["resnet18"] = Recipe(
    model="resnet18",
    model_args={"zero_init_last": False},
    train=TrainConfig(epochs=40, batch_size=128),
    data=DataConfig(dataset=DATASET, augment="crop-flip"),
    image_size=64,
    members=25,
)
# The network of `digits`, trained otherwise.
RECIPES |= {
    f"digits-{name}": replace(RECIPES["digits"], train=settings, data=data, first=200, members=5)
    for name, settings, data in (
        ("adamw", TrainConfig(optimizer="adamw", lr=0.002, weight_decay=0.01), DIGITS),
        ("crops", TrainConfig(epochs=40), DIGITS.model_copy(update={"augment": "crop-flip"})),
        ("low-rate", TrainConfig(epochs=40, lr=0.01), DIGITS),
    )
}
# The digits with images for validation. Defaults and presets are chosen on the zoos named `tuning`, which no table of
# results reports.
RECIPES["digits-split"] = replace(
    RECIPES["digits"], data=DataConfig(dataset="digits", train_size=1000), first=300, members=12
)
RECIPES["tuning-digits"] = replace(RECIPES["digits-split"], first=500, members=6)
RECIPES["tuning-resnet"] = replace(RECIPES["resnet-quarter"], first=500, members=6)


def train(name: str, seeds: Sequence[int], dataset: str = DATASET, out: Path = OUT) -> list[Path]:
    """Train a zoo's members into `out/NAME/seed-N`; those that are there already are kept.

    Args:
        name: The recipe.
        seeds: One for every member.
        dataset: CIFAR-10, on the Hub or in a folder.
        out: The folder of all zoos.

    Returns:
        The members' folders, in the order of the seeds.
    """
    recipe = RECIPES[name]
    data = recipe.on(dataset)
    architecture = architecture_for(recipe.model, data, model_args=recipe.model_args, image_size=recipe.image_size)
    return [member.folder for member in train_zoo(architecture, data, recipe.train, seeds, out / name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--members", type=int)
    parser.add_argument("--dataset", default=DATASET, help="a Hub data set or a local folder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    recipe = RECIPES[options.name]
    for folder in train(options.name, recipe.seeds(options.members or recipe.members), options.dataset, options.out):
        print(folder, json.loads((folder / "training.json").read_text())["result"])


if __name__ == "__main__":
    main()
