"""What starzoo loads of what timm has written: exports of four versions of timm, checkpoints of torchvision, all names.

    python -m benchmarks.compatibility

installs older versions of timm into folders of their own, lets each export the smallest network of every one of its
modules with ten classes, and loads each folder by plain timm and by `starzoo.load_source`. Equal means that all weights
and the outputs for one image are the same bits. Checkpoints of torchvision are brought in by `starzoo import` and must
compute what torchvision computes. Every name in timm's registry goes through `starzoo inspect`.

Results: benchmarks/results/compatibility.json, and compatibility.md from it. `--only 0.6.13` runs one part.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "compatibility"
VERSIONS = ("0.6.13", "0.9.16", "1.0.15", "installed")
LARGEST = 60_000_000  # parameters
CLASSES = 10
TORCHVISION = {
    "densenet121": "densenet121", "densenet169": "densenet169", "inception_v3": "inception_v3",
    "regnet_x_400mf": "regnetx_004_tv", "regnet_x_800mf": "regnetx_008", "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008_tv", "regnet_y_1_6gf": "regnety_016", "resnet18": "resnet18", "resnet34": "resnet34",
    "resnet50": "resnet50", "resnet101": "resnet101", "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2", "vgg11": "vgg11", "vgg11_bn": "vgg11_bn", "vgg13": "vgg13",
    "vgg13_bn": "vgg13_bn", "vgg16": "vgg16", "vgg16_bn": "vgg16_bn",
}  # fmt: skip
"""Networks of torchvision by their name in timm."""

Row = dict[str, Any]


def smallest_of_each_module() -> Iterator[tuple[str, str]]:
    """The module and the name of the smallest network in it that fits, for the timm that is imported."""
    import timm

    torch.linspace = partial(torch.linspace, device="cpu")  # whose numbers old constructors look at
    smallest: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except Exception as error:  # noqa: BLE001  an old timm beside a new torch
            logging.info("%s: %s", name, error)
            continue
        if size <= min(LARGEST, smallest.get(module, (LARGEST, ""))[0]):
            smallest[module] = (size, name)
    yield from ((module, name) for module, (_, name) in sorted(smallest.items()))


def export(folder: Path) -> None:
    """Write one network per module, by the exporter of the timm that is imported, as safetensors."""
    import huggingface_hub
    from safetensors.torch import save_file

    # timm 0.6 imports it, and needs it only to push
    huggingface_hub.repo_type_and_id_from_hf_id = None  # type: ignore[attr-defined]
    import timm

    try:
        from timm.models._hub import save_for_hf
    except ImportError:
        from timm.models.hub import save_for_hf
    for number, (module, name) in enumerate(smallest_of_each_module()):
        try:
            torch.manual_seed(number)
            model = timm.create_model(name, num_classes=CLASSES)
            save_for_hf(model, folder / f"{module}--{name}")
            state = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}
            save_file(state, folder / f"{module}--{name}" / "model.safetensors", {"format": "pt"})
        except Exception as error:  # noqa: BLE001
            print(f"{name}: not exported: {type(error).__name__}: {error}", file=sys.stderr)


def compare(folder: Path) -> tuple[str, str]:
    """What becomes of one folder: equal, different, refused, or not loaded by plain timm either; and why."""
    import timm

    from starzoo.errors import StarzooError
    from starzoo.models.sources import load_source

    for pickle in folder.glob("*.bin"):
        pickle.unlink()
    try:
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # noqa: BLE001
        return "not by timm", first_line(error)
    try:
        source = load_source(folder)
        own = source.model()
    except StarzooError as error:
        return "refused", error.message.replace(str(folder), "").lstrip(": ")[:200]
    expected = plain.state_dict()
    if list(source.state) != list(expected) or not all(torch.equal(source.state[n], expected[n]) for n in expected):
        return "different", "weights"
    images = torch.randn(1, *source.architecture.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return ("equal", "") if same(plain(images), own(images)) else ("different", "outputs")


def same(one: Any, other: Any) -> bool:
    """Whether two outputs are the same bits; a network may return several."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(torch.equal(one, other))


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def exports_of(version: str) -> Iterator[Row]:
    """Every exported folder of one version of timm."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if version != "installed":
            target = Path(scratch) / "timm"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            subprocess.run([*pip, f"timm=={version}"], check=True)
            environment["PYTHONPATH"] = f"{target}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        out = Path(scratch) / "exports"
        out.mkdir()
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compatibility", "--export", str(out)]
        subprocess.run(command, check=True, env=environment)
        for folder in sorted(out.iterdir()):
            module, _, name = folder.name.partition("--")
            outcome, reason = compare(folder)
            yield {"part": f"timm {version}", "module": module, "name": name, "outcome": outcome, "reason": reason}


def checkpoints_of_torchvision() -> Iterator[Row]:
    """Every checkpoint of torchvision that timm has a network for, through `starzoo import`."""
    import torchvision

    from starzoo.errors import StarzooError
    from starzoo.models.sources import load_source
    from starzoo.workflows.import_checkpoints import import_checkpoints

    for number, (theirs, name) in enumerate(TORCHVISION.items()):
        if name is None:
            yield {
                "part": "torchvision",
                "name": theirs,
                "outcome": "not by timm",
                "reason": "timm has no such network",
            }
            continue
        torch.manual_seed(number)
        extra = {"aux_logits": False, "init_weights": False} if theirs == "inception_v3" else {}
        model = torchvision.models.get_model(theirs, num_classes=CLASSES, **extra).eval()
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(model.state_dict(), Path(scratch) / f"{theirs}.pth")
            try:
                [imported] = import_checkpoints([Path(scratch) / f"{theirs}.pth"], Path(scratch) / "out", arch=name)
                source = load_source(imported.folder)
            except StarzooError as error:
                reason = error.message.replace(scratch, "")[:200]
                yield {"part": "torchvision", "name": theirs, "outcome": "refused", "reason": reason}
                continue
            size = source.architecture.preprocessing.input_size
            images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                ours, expected = source.model()(images), model(images)
            error = float((ours - expected).norm() / expected.norm())
            outcome, reason = ("equal", "") if error < 1e-4 else ("different", f"relative error {error:.1e}")
            yield {"part": "torchvision", "name": theirs, "outcome": outcome, "reason": reason}


def names_of_timm() -> Iterator[Row]:
    """Every deprecated name of timm's registry through `starzoo inspect`."""
    import timm

    from starzoo.errors import StarzooError
    from starzoo.workflows.inspect import inspect_model

    for name in sorted(timm.models.get_deprecated_models()):
        try:
            inspect_model(name)
            outcome, reason = "equal", ""
        except StarzooError as error:
            outcome, reason = "refused", error.message[:200]
        except Exception as error:  # noqa: BLE001
            outcome, reason = "internal error", first_line(error)
        yield {"part": "deprecated names", "name": name, "outcome": outcome, "reason": reason}


def table(rows: list[Row]) -> str:
    """The page: counts by part, and every row that is not equal with its reason."""
    outcomes = ("equal", "different", "refused", "internal error", "not by timm")
    lines = [
        "# What starzoo loads of what timm has written",
        "",
        "Made by `python -m benchmarks.compatibility`. Equal: the weights and the outputs are those of plain timm, "
        "bit for bit; for torchvision, outputs within 1e-4 of its own; for deprecated names, `starzoo inspect` ends "
        "well. Not by timm: plain timm does not load it either.",
        "",
        f"| | {' | '.join(outcomes)} |",
        f"|---|{'--:|' * len(outcomes)}",
    ]
    for part in dict.fromkeys(row["part"] for row in rows):
        counts = Counter(row["outcome"] for row in rows if row["part"] == part)
        lines.append(f"| {part} | {' | '.join(str(counts[outcome]) for outcome in outcomes)} |")
    lines += ["", "| | name | | why |", "|---|---|---|---|"]
    for row in rows:
        if row["outcome"] != "equal":
            reason = row["reason"].replace("|", "\\|")
            lines.append(f"| {row['part']} | {row['name']} | {row['outcome']} | {reason} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one part: a version of timm, torchvision or names")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.export:
        return export(options.export)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        **{version: lambda version=version: exports_of(version) for version in VERSIONS},
        "torchvision": checkpoints_of_torchvision,
        "names": names_of_timm,
    }
    file = RESULTS.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    for part in [options.only] if options.only else parts:
        known[part] = list(parts[part]())
        print(part, Counter(row["outcome"] for row in known[part]))
        file.write_text(json.dumps({part: known[part] for part in parts if part in known}, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table([row for part in parts for row in known.get(part, [])]))
    return None


if __name__ == "__main__":
    main()
