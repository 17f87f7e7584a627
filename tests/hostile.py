"""A star.json of which every string is a stranger's: whatever text it allows, wherever it allows one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ValidationError

from starzoo.config import DataConfig, RunConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.evaluate.results import Bf16Error, Evaluation, LossPlane, PathCurve, PathKind, PredictionScores, Role
from starzoo.models.architecture import Architecture
from starzoo.models.record import ModelRecord
from starzoo.star.manifest import StarManifest

__all__ = ["HOSTILE", "full_manifest", "with_every_string"]

COMMIT, DIGEST = "c0ffee" * 6 + "beef", "0123456789abcdef" * 4
SPLITS: tuple[Literal["train", "test"], ...] = ("test", "train")

HOSTILE = (
    "<svg onload=\"document.documentElement.setAttribute('pwned','1')\"></svg>",
    "<img src=BEACON/img onerror=\"document.documentElement.setAttribute('pwned','1')\">",
    "<script>document.documentElement.setAttribute('pwned','1')</script>",
    '<meta http-equiv="refresh" content="0; url=BEACON/refresh">',
    '<base href="BEACON/base/"><form action=BEACON/form><button autofocus>x</button></form>',
    "<style>@import 'BEACON/style'; body { background: url(BEACON/background) }</style>",
    '<link rel=stylesheet href="BEACON/link"><iframe src="BEACON/frame"></iframe>',
    '<object data="BEACON/object"></object><video src="BEACON/video" autoplay></video>',
    "![beacon](BEACON/picture) [click](javascript:alert(1)) <BEACON/auto> BEACON/bare www.evil.example",
    "![figure](plots/other-test.png)",
    "<!-- a comment that nobody ends",
    "</details></td></table></body>",
    "``` ` ~~~ ```",
    "a | b | c",
    "one\n\n# two\n\n---\n\n- three\n\n<b>four</b>",
    "&lt;b&gt; &#60;i&#62; \\<u> **bold** _it_ ~~s~~ $x$ :smile: a@b.example",
    "\u202eevil\u2028\x1b[31m\x07\x00",
)


def full_manifest() -> StarManifest:
    """A manifest in which nothing that a card says is missing."""
    preprocessing = [Preprocessing(crop_pct=share, interpolation="x", crop_mode="y") for share in (0.9, 0.95)]
    records = [
        ModelRecord(
            name=f"m{number}",
            repo="me/net" if number else "local",
            sha=COMMIT,
            files={"model.safetensors": DIGEST, "config.json": DIGEST},
            license="mit" if number else "other",
            dtype="bfloat16",
            preprocessing=preprocessing[number % 2],
            label_names=("a", "b", "c"),
            images=DIGEST,
            estimated=True,
            steps=3,
        )
        for number in range(4)
    ]
    both = [_measure(split) for split in SPLITS]
    plane = {"corners": ((0, 0), (1, 0), (0.5, 1)), "x": (0, 1), "y": (0, 1), "loss": ((1, 2), (2, 3))}
    evaluation = Evaluation(
        paths=tuple(path for paths, _ in both for path in paths),
        qualities=tuple(quality for _, qualities in both for quality in qualities),
        planes=(LossPlane(names=("star", "m0", "m3"), split="test", **plane),),
        data=DataConfig(dataset="you/other", name="x", revision="v1"),
        ood_images=(3,),
        rounding=Bf16Error(nll=0.1, accuracy=0.1),
        ensembles=[
            {"split": split, "size": size, "subsets": 3, "nll": 1, "nll_std": 0, "accuracy": 0.9, "accuracy_std": 0}
            for split in SPLITS
            for size in (1, 2, 3)
        ],
        contributions=[{"name": "m0", "split": split, "nll": 0.1, "accuracy": 0.01} for split in SPLITS],
    )
    config = RunConfig(
        data=DataConfig(dataset="me/pictures", name="x", revision=COMMIT, image_column="i", label_column="l"),
        evaluate={"ood": {"dataset": "./folder", "name": "x"}, "batch_norm_augment": "none"},
        runtime={"trackers": ("x",)},
    )
    return StarManifest(
        name="my-star",
        architecture=Architecture(name="test_resnet", num_classes=3, label_names=("a", "b", "c")),
        data_fingerprint=DIGEST,
        software={"torch": "2.10"},
        evaluation=evaluation,
        sources=tuple(records[:3]),
        holdouts=tuple(records[3:]),
        config=config,
        repo="me/star",
        files={"config.json": DIGEST},
        chosen_license="mit",
        data_label_names=("c", "b", "a"),
        changes=("one", "two"),
        history=({"path_loss": 0.5},),
        steps=9,
    )


def _measure(split: Literal["train", "test"]) -> tuple[list[PathCurve], list[PredictionScores]]:
    found = {"auroc": 0.9, "fpr95": 0.2}
    scores = {
        **{"split": split, "accuracy": 0.9, "nll": 0.3, "ece": 0.02, "aurc": 0.1, "accuracy_80": 1, "accuracy_90": 1},
        "ood": [dict.fromkeys(("confidence", "entropy", "mutual_information"), found)],
        "corrupted": {"accuracy": [0.5] * 5, "nll": [1] * 5, "worst": "fog", "worst_accuracy": 0.1},
        **{"dee": 1.5, "dee_interval": (1, 2)},
    }
    ends: dict[PathKind, str] = {"star-source": "m", "star-heldout": "n", "source-source": "o"}
    roles: dict[Role, tuple[str, ...]] = {
        "source": ("m0", "m1", "m2"),
        "held-out": ("m3",),
        "star": ("star",),
        "ensemble": ("all",),
    }
    line = {"split": split, "t": (0, 0.5, 1), "loss": (1, 1.2, 1), "accuracy": (0.9,) * 3}
    return (
        [PathCurve(kind=kind, a="star", b=f"{b}{number}", **line) for kind, b in ends.items() for number in range(3)],
        [PredictionScores(name=name, role=role, **scores) for role, names in roles.items() for name in names],
    )


def with_every_string(manifest: StarManifest, *texts: str) -> StarManifest:
    """The manifest with one of some texts in place of every string that may be any text; names stay unique."""
    document = manifest.model_dump(mode="json")
    for number, (place, key) in enumerate([*_strings(document)]):
        before, text = place[key], texts[number % len(texts)]
        for attempt in (text, f"{text} {number}"):
            place[key] = attempt
            try:
                StarManifest.model_validate(document)
            except ValidationError:
                place[key] = before
            else:
                break
    for number, place in enumerate(_dicts(document)):  # names of files and packages
        place[texts[number % len(texts)]] = place.pop(next(iter(place)))
    return StarManifest.model_validate(document)


def _strings(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(items):
        if isinstance(entry, str):
            yield value, key
        else:
            yield from _strings(entry)


def _dicts(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    models = [*document["sources"], *document["holdouts"]]
    yield from (place for place in [document["software"], *(model["files"] for model in models)] if place)
