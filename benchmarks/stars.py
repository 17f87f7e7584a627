"""Stars beside the paper's algorithm at equal steps, and beside what else stands for an ensemble at equal compute.

    python -m benchmarks.stars digits
    python -m benchmarks.stars cifar --dataset uoft-cs/cifar10 --seeds 0 1 2

fits stars on one zoo of converged networks (8 sources of CIFAR-10, 12 of the digits; 5 held-outs) and evaluates all
under the same matching. Every row is kept in benchmarks/results/stars-ZOO.json as soon as it is measured, so that the
same command goes on where it was cut off; stars.md is written from these files.

The controls tell what Starlight itself is worth: the average that it starts from, and ordinary training from there.

Costs are counted in forward passes of a mini-batch, a backward pass as two: a step of the paper's takes 3, one with
distillation 4, as a step of a distilled student does; stochastic weight averaging (SWA) gets as many steps as that
makes. The training of the members is nobody's cost, since all need at least one of them, and the ensemble all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.zoos import DATASET, OUT, RECIPES, train
from starzoo.architecture import Architecture
from starzoo.config import (
    AlignConfig,
    Constant,
    DataConfig,
    EvalConfig,
    RunConfig,
    StarConfig,
    TrainConfig,
    load_config,
)
from starzoo.data import ImageData, load_data
from starzoo.evaluate.evaluate import Zoo, evaluate
from starzoo.evaluate.path import reestimate_batch_norm
from starzoo.layout import channels_last
from starzoo.optimization import make_optimizer
from starzoo.pipeline import QUICKSTART_ARGS
from starzoo.sources import Source, load_sources
from starzoo.specs import infer_architecture
from starzoo.star.train import fit
from starzoo.zoo import architecture_for, train_zoo

RESULTS = Path(__file__).parent / "results"
DIGITS = DataConfig(dataset="digits")
PAPER = Path(__file__).parents[1] / "configs" / "paper.yaml"
HOLDOUTS = 5
STARS = (
    "starzoo",
    "starzoo, without distillation",
    "the paper's algorithm",
    "aligned average, no training",
    "aligned average, plain SGD",
)
OTHERS = ("distilled student", "SWA of one member")


@dataclass(frozen=True)
class Study:
    """A zoo, the settings of its stars that are not the defaults, and at how many points a path is measured."""

    data: DataConfig
    sources: int
    star: Mapping[str, Any]
    member_rate: float
    points: int


def studies(dataset: str) -> dict[str, Study]:
    cifar = DataConfig(dataset=dataset, train_size=RECIPES["resnet"].data.train_size, test_size=2000)
    return {
        "digits": Study(DIGITS, 12, {}, TrainConfig().lr, 11),
        "cifar": Study(cifar, 8, {"epochs": 10, "batch_size": 128, "lr": 0.8}, RECIPES["resnet"].train.lr, 5),
    }


def members(name: str, study: Study, out: Path) -> list[Source]:
    """The zoo's members, trained where they are missing."""
    count = study.sources + HOLDOUTS
    if name == "cifar":
        return load_sources(train("resnet", range(count), study.data.dataset, out))
    architecture = architecture_for("resnet18", study.data, model_args=QUICKSTART_ARGS, image_size=16)
    # Not the zoo of the quickstart; the rate and κ were chosen on this one.
    zoo = train_zoo(architecture, study.data, TrainConfig(), range(100, 100 + count), out / "digits")
    return load_sources([member.folder for member in zoo])


def configs(study: Study, seed: int) -> dict[str, RunConfig]:
    """How each star is fitted, two controls from the same start, and the student; all under the same matching."""
    ours = StarConfig(**{**study.star, "seed": seed})
    same = {"seed": seed, "epochs": ours.epochs, "batch_size": ours.batch_size}  # at its own rate
    student = {"start": "random", "t": Constant(value=0), "mu": 0.0, "lr": study.member_rate}
    stars = {
        "starzoo": ours,
        "starzoo, without distillation": ours.model_copy(update={"kappa": 0.0}),
        "the paper's algorithm": load_config(PAPER).star.model_copy(update=same),
        "aligned average, no training": ours.model_copy(update={"epochs": 0}),
        "aligned average, plain SGD": ours.model_copy(update={"t": Constant(value=0), "mu": 0.0, "kappa": 0.0}),
        "distilled student": ours.model_copy(update=student),
    }
    return {name: RunConfig(data=study.data, star=star) for name, star in stars.items()}


def average_weights(
    architecture: Architecture, state: Mapping[str, Tensor], data: ImageData, star: StarConfig, epochs: int
) -> dict[str, Tensor]:
    """SWA (Izmailov et al. 2018): go on from a member at the constant rate 0.05, and average the ends of the epochs."""
    torch.manual_seed(star.seed)
    model = channels_last(architecture.build())
    model.load_state_dict(dict(state))
    rate = TrainConfig(lr=0.05)
    optimizer = make_optimizer(model.parameters(), rate)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for epoch in range(epochs):
        model.train()
        for images, labels in data.train.loader(star.batch_size, epoch=epoch, seed=star.seed):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        averaged.update_parameters(model)
    reestimate_batch_norm(averaged.module, data.train.images(250))
    return {name: tensor.contiguous() for name, tensor in averaged.module.state_dict().items()}


def measure(
    name: str, study: Study, out: Path, seeds: Sequence[int], done: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row per seed and variant that is not done yet."""
    models = members(name, study, out)
    sources, holdouts = models[: study.sources], models[study.sources :]
    architecture = models[0].architecture
    data, spec = load_data(study.data, architecture.preprocessing), infer_architecture(architecture)
    states = [source.state for source in sources]
    known = {(row["variant"], row["seed"]) for row in done}

    def config(pairs: int) -> EvalConfig:
        return EvalConfig(pairs=pairs, sources=0, points=study.points)

    pairs = 0 if done or 0 not in seeds else 6  # between regular models, once
    for seed in seeds:
        for variant, run in configs(study, seed).items():
            if (variant, seed) not in known:
                star = fit(architecture, spec, states, data, run).state
                tested = holdouts if variant in STARS else []
                yield {
                    "variant": variant,
                    "seed": seed,
                    **figures(architecture, spec, data, star, sources, tested, config(pairs)),
                }
                pairs = 0
        if (OTHERS[1], seed) not in known:
            star_config = StarConfig(**{**study.star, "seed": seed})
            epochs = round(star_config.epochs * 4 / 3)
            swa = average_weights(architecture, states[seed], data, star_config, epochs)
            yield {"variant": OTHERS[1], "seed": seed, **figures(architecture, spec, data, swa, sources, [], config(0))}


def figures(
    architecture: Architecture,
    spec: Any,
    data: ImageData,
    state: Mapping[str, Tensor],
    sources: Sequence[Source],
    holdouts: Sequence[Source],
    config: EvalConfig,
) -> dict[str, Any]:
    """The four measures of its paths to held-outs, and how well it and the ensemble predict."""
    zoo = Zoo(
        star=state,
        sources={source.name: source.state for source in sources},
        holdouts={holdout.name: holdout.state for holdout in holdouts},
    )
    found = evaluate(architecture, spec, zoo, data, config, AlignConfig())
    row: dict[str, Any] = {}
    for kind in ("star-held-out", "regular-regular"):
        paths = [path for path in found.paths if path.kind == kind]
        for score in ("barrier", "highest_loss", "worst_accuracy", "excess"):
            if paths:
                row[f"{kind} {score}"] = statistics.fmean(getattr(path, score) for path in paths)
    for role in ("star", "member", "ensemble"):
        for score in ("accuracy", "nll", "ece"):
            row[f"{role} {score}"] = statistics.fmean(getattr(each, score) for each in found.qualities_of(role))
    return row


def kept(row: Mapping[str, float], score: str) -> float:
    """The share of the ensemble's gain over the mean single member that is kept, in percent."""
    gain = row[f"ensemble {score}"] - row[f"member {score}"]
    return 100 * (row[f"star {score}"] - row[f"member {score}"]) / gain


COLUMNS = {
    "barrier": lambda row: row.get("star-held-out barrier"),
    "highest loss": lambda row: row.get("star-held-out highest_loss"),
    "excess": lambda row: row.get("star-held-out excess"),
    "worst accuracy": lambda row: row.get("star-held-out worst_accuracy"),
    "accuracy": lambda row: row["star accuracy"],
    "NLL": lambda row: row["star nll"],
    "ECE": lambda row: row["star ece"],
    "gain kept in accuracy (%)": lambda row: kept(row, "accuracy"),
    "in NLL (%)": lambda row: kept(row, "nll"),
}


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Means and standard deviations over the seeds, one line per variant."""
    rows = sorted(rows, key=lambda row: row["seed"])
    first = next(row for row in rows if "regular-regular barrier" in row)
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"**{name}**: test images, {seeds} seeds (mean ± standard deviation), paths to {HOLDOUTS} held-outs, all "
        f"aligned by `{AlignConfig().method}`. Regular–regular barrier {first['regular-regular barrier']:.3f}. Single "
        f"members {first['member accuracy']:.4f} / {first['member nll']:.4f} (accuracy / NLL), ensemble of the sources "
        f"{first['ensemble accuracy']:.4f} / {first['ensemble nll']:.4f}.",
        "",
        "| variant | " + " | ".join(COLUMNS) + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for variant in (*STARS, *OTHERS):
        if all(row["variant"] != variant for row in rows):
            continue
        cells = []
        for title, column in COLUMNS.items():
            values = [column(row) for row in rows if row["variant"] == variant]
            digits = 0 if "%" in title else 4
            known = [value for value in values if value is not None]
            spread = statistics.stdev(known) if len(known) > 1 else 0.0
            cells.append(f"{statistics.fmean(known):.{digits}f} ± {spread:.{digits}f}" if known else "–")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", choices=studies(DATASET))
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of all zoos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    file = RESULTS / f"stars-{options.zoo}.json"
    read = lambda: json.loads(file.read_text()) if file.is_file() else []  # noqa: E731 - seeds may run side by side
    for row in measure(options.zoo, studies(options.dataset)[options.zoo], options.out, options.seeds, read()):
        file.write_text(json.dumps([*read(), row], indent=1) + "\n")
        print(json.dumps(row), flush=True)
    found = {name: RESULTS / f"stars-{name}.json" for name in studies(DATASET)}
    tables = [table(name, json.loads(path.read_text())) for name, path in found.items() if path.is_file()]
    (RESULTS / "stars.md").write_text("\n".join(tables))


if __name__ == "__main__":
    main()
