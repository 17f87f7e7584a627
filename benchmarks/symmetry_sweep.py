"""The symmetries of every architecture in timm: trace each name, and prove what was found by permuting at random.

    python benchmarks/symmetry_sweep.py
    python benchmarks/symmetry_sweep.py --match 'vit_*' --jobs 1
    python benchmarks/symmetry_sweep.py --table-only

Every name of `timm.list_models()` is traced at its own input size, without weights. Every network of at most 120 M
parameters is also run with all groups permuted, and above that the smallest of each family (timm's module), on the
smallest image that it takes. Each name has a process of its own, so that memory is measured by the operating system and
a crash costs one name. What is done is kept in runs/symmetry-sweep: a name is traced again when timm, torch or the
rules have changed, and proved again when its specification or the prover has. The results go to
benchmarks/results/symmetry.json and symmetry.md. Exit code 1 unless all is proved.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per core is faster than threads

import timm
import torch

import starzoo.symmetry
from starzoo.errors import StarzooError
from starzoo.models.architecture import Architecture
from starzoo.models.spec_cache import spec_cache_version
from starzoo.symmetry import PermutationSpec, infer, verify
from starzoo.symmetry.terms import Pinned, pinned_parts

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/symmetry-sweep")
LARGEST = 120_000_000  # parameters up to which every name is proved
PROVER = ("permutation", "spec", "verification")  # the files that a proof is made by
IMAGE_SIZES = (64, 96, 128, 160, 192, 224, 256)
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="*", help="names, as a shell pattern")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--large-jobs", type=int, default=1, help="at once above 120 M parameters: 10 GB each")
    parser.add_argument("--table-only", action="store_true", help="write the table again from the committed results")
    options = parser.parse_args()
    if options.table_only:
        found = json.loads((RESULTS / "symmetry.json").read_text())
        (RESULTS / "symmetry.md").write_text(table(found["versions"], found["rows"]))
        return report(found["rows"])
    names = fnmatch.filter(timm.list_models(), options.match)
    traced = work_off("trace", dict.fromkeys(names, spec_cache_version()), trace_one, options.jobs)
    chosen = sorted(choose(traced), key=lambda name: traced[name]["parameters"])
    small = [name for name in chosen if traced[name]["parameters"] <= LARGEST]
    proofs = {name: f"{prover_version()}, specification {traced[name]['specification']}" for name in chosen}
    proved = work_off("verify", {name: proofs[name] for name in small}, verify_one, options.jobs)
    proved |= work_off("verify", {name: proofs[name] for name in chosen[len(small) :]}, verify_one, options.large_jobs)
    rows = [{"name": name, **traced[name], "verify": proved.get(name)} for name in names]
    if options.match != "*":
        return report(rows)
    RESULTS.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (RESULTS / "symmetry.json").write_text(
        f'{{"versions": {json.dumps(spec_cache_version())}, "rows": [\n{lines}\n]}}\n'
    )
    (RESULTS / "symmetry.md").write_text(table(spec_cache_version(), rows))
    return report(rows)


def choose(traced: dict[str, Row]) -> list[str]:
    """The names that are proved: all small ones, and the smallest large one of each family."""
    fine = {name: row for name, row in traced.items() if "error" not in row}
    chosen = [name for name, row in fine.items() if row["parameters"] <= LARGEST]
    large: dict[str, list[str]] = defaultdict(list)
    for name, row in fine.items():
        if row["parameters"] > LARGEST:
            large[row["family"]].append(name)
    return chosen + [min(names, key=lambda name: fine[name]["parameters"]) for names in large.values()]


# ---------------------------------------------------------------------------------------------------- one name


def trace_one(name: str) -> Row:
    architecture = Architecture.from_registry(name)
    before, started = reset_peak(), time.perf_counter()
    model = architecture.build_uninitialized()
    built, build_peak = time.perf_counter() - started, peak()
    resident = reset_peak()
    spec = infer(model, architecture.example_input())
    sizes = {each: parameter.numel() for each, parameter in model.named_parameters()}
    buffers = sum(each.numel() * each.element_size() for each in model.buffers())
    fixed: Counter[str] = Counter()
    for each, size in sizes.items():
        if not spec.is_permuted(each):
            reasons = [part.reason for term in spec.axes[each] for part in pinned_parts(term) if part.reason]
            fixed[max(reasons, key=len, default="")] += size
    return {
        "specification": digest(json.dumps({**spec.to_json(), "trace_seconds": 0}).encode()),
        "family": timm.model_entrypoint(name).__module__.rpartition(".")[2],
        "parameters": sum(sizes.values()),
        "groups": len(spec.groups),
        "wreath_groups": spec.wreath_groups,
        "coverage": round(spec.coverage(sizes), 6),
        "unsupported_operators": list(spec.unsupported_operators),
        "pinned_parameters": dict(fixed.most_common(2)),
        "output_pins_all": all(isinstance(term, Pinned) for terms in spec.outputs for term in terms),
        "trace_seconds": round(spec.trace_seconds, 3),
        "build_seconds": round(built, 3),
        "trace_megabytes": round((peak() - resident) / 1e6, 1),
        "build_megabytes": round((build_peak - before) / 1e6, 1),
        "buffer_megabytes": round(buffers / 1e6, 1),
    }


def verify_one(name: str) -> Row:
    """On the smallest image that the network takes; a check that fails there is made again at its own size."""
    full = Architecture.from_registry(name)
    whole = infer(full.build_uninitialized(), full.example_input())
    sizes = [size for size in IMAGE_SIZES if size < full.preprocessing.input_size[1]]
    row: Row = {}
    for image_size in [*sizes, None]:
        try:
            row = prove(name, whole, image_size)
        except (StarzooError, RuntimeError, AssertionError, ValueError, IndexError):
            if image_size is None:
                raise
            continue  # too small for this network
        if row["passed"]:
            return row
        print(f"{name} at {image_size}: {row}", flush=True)
    return row


def prove(name: str, whole: PermutationSpec, image_size: int | None) -> Row:
    """Check the specification of the full size where it fits the smaller network, and that network's own otherwise."""
    architecture = Architecture.from_registry(name, image_size=image_size)
    model, example = architecture.build_uninitialized(), architecture.example_input()
    shapes = {each: tuple(tensor.shape) for each, tensor in model.state_dict().items()}
    fits = shapes == {each: tuple(term.size for term in terms) for each, terms in whole.axes.items()}
    started = time.perf_counter()
    result = verify(model, example, whole if fits else infer(model, example))
    return {
        "passed": result.passed,
        "relative_error": result.relative_error,
        "tolerance": result.tolerance,
        "rounded_in": list(result.rounded_in)[:3],
        "weights_changed": result.weights_changed,
        "negative_control_passed": result.negative_control_passed,
        "negative_control_tried": result.negative_control_tried,
        "guilty": list(result.failing_groups),
        "image_size": architecture.preprocessing.input_size[1],
        "own_specification": not fits,
        "seconds": round(time.perf_counter() - started, 2),
    }


def reset_peak() -> int:
    """Forget the peak of the resident memory so far; the resident memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


# ----------------------------------------------------------------------------------------------- all the names


def work_off(kind: str, keys: dict[str, str], work: Callable[[str], Row], jobs: int) -> dict[str, Row]:
    """Do what is not done yet, a process per name, and return all rows. A result counts if it has the name's key."""
    folder = RUNS / kind
    folder.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()  # pages that are shared with the children stay shared
    running: dict[str, Any] = {}
    missing = [name for name, key in keys.items() if not is_done(folder / f"{name}.json", key)]
    context, started = multiprocessing.get_context("fork"), time.perf_counter()
    for count, name in enumerate(missing, start=1):
        while len(running) >= jobs:
            reap(folder, running, keys)
        running[name] = context.Process(target=record, args=(work, name, folder / f"{name}.json", keys[name]))
        running[name].start()
        if count % 50 == 0:
            print(f"{kind}: {count}/{len(missing)} in {time.perf_counter() - started:.0f} s", flush=True)
    while running:
        reap(folder, running, keys)
    gc.unfreeze()
    return {name: json.loads((folder / f"{name}.json").read_text())["row"] for name in keys}


def is_done(path: Path, key: str) -> bool:
    return path.is_file() and json.loads(path.read_text())["key"] == key


def prover_version() -> str:
    files = [Path(starzoo.symmetry.__file__).parent / f"{name}.py" for name in PROVER]
    return (
        f"timm {timm.__version__}, torch {torch.__version__}, prover {digest(*(file.read_bytes() for file in files))}"
    )


def digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def reap(folder: Path, running: dict[str, Any], keys: dict[str, str]) -> None:
    for name, process in list(running.items()):
        process.join(timeout=0.01)
        if process.exitcode is not None:
            del running[name]
            if process.exitcode:
                write(folder / f"{name}.json", keys[name], {"error": f"ended with {process.exitcode}"})


def record(work: Callable[[str], Row], name: str, path: Path, key: str) -> None:
    torch.set_num_threads(1)
    try:
        row = work(name)
    except Exception as error:  # noqa: BLE001  # every failure is a result
        row = {"error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-2000:]}
    write(path, key, row)


def write(path: Path, key: str, row: Row) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"key": key, "row": row}))
    draft.replace(path)


# --------------------------------------------------------------------------------------------------- the report


def summary(rows: list[Row]) -> dict[str, Any]:
    fine = [row for row in rows if "error" not in row]
    checked = [row["verify"] for row in rows if row["verify"]]
    passed = [check for check in checked if check.get("passed")]
    exact = [check["relative_error"] for check in passed if not check["rounded_in"]]
    rounded = [check["relative_error"] for check in passed if check["rounded_in"]]
    return {
        "names": len(rows),
        "traced": len(fine),
        "with_unsupported_operators": sum(bool(row["unsupported_operators"]) for row in fine),
        "covered": sum(row["coverage"] >= 0.99 for row in fine),
        "checked": len(checked),
        "passed": len(passed),
        "worst_exact": max(exact, default=0.0),
        "rounded": len(rounded),
        "worst_rounded": max(rounded, default=0.0),
        "median_trace": statistics.median(row["trace_seconds"] for row in fine),
        "worst_trace": max(fine, key=lambda row: row["trace_seconds"]),
        "worst_memory": max(fine, key=lambda row: row["trace_megabytes"]),
    }


def report(rows: list[Row]) -> int:
    for row in rows:
        if "error" in row or row["unsupported_operators"]:
            print(row["name"], row.get("error") or row["unsupported_operators"])
        elif row["verify"] and not row["verify"].get("passed"):
            print(row["name"], row["verify"])
    found = summary(rows)
    print(json.dumps({key: value["name"] if isinstance(value, dict) else value for key, value in found.items()}))
    proved = found["traced"] == found["names"] and found["passed"] == found["checked"]
    return 0 if proved and not found["with_unsupported_operators"] else 1


def table(versions: str, rows: list[Row]) -> str:
    found = summary(rows)
    slowest, largest = found["worst_trace"], found["worst_memory"]
    lines = [
        f"Every architecture of timm ({versions}), made by `python benchmarks/symmetry_sweep.py`.",
        "",
        f"- Traced without error: {found['traced']} of {found['names']}; "
        f"with an operator that has no rule: {found['with_unsupported_operators']}.",
        f"- Proved by permuting all groups at random in float64: {found['passed']} of {found['checked']} checked; the "
        f"largest relative error is {found['worst_exact']:.1e}. In {found['rounded']} of them a module rounds to "
        f"float32 on its own; there it is {found['worst_rounded']:.1e}.",
        f"- At least 99 % of the parameters lie in tensors that can be permuted: {found['covered']} of "
        f"{found['traced']} names ({found['covered'] / found['traced']:.1%}).",
        f"- A trace takes {found['median_trace']:.2f} s (median), at most {slowest['trace_seconds']:.1f} s "
        f"({slowest['name']}), and at most {largest['trace_megabytes']:.0f} MB ({largest['name']}).",
        "",
        "| family | names | parameters (millions) | groups | coverage, lowest | checked | relative error, largest |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.get("family", "error")].append(row)
    for family, members in sorted(families.items()):
        fine = [row for row in members if "error" not in row]
        checks = [row["verify"] for row in fine if row["verify"]]
        errors = [check.get("relative_error", float("inf")) for check in checks]
        lines.append(
            f"| {family} | {len(members)} | {span([row['parameters'] / 1e6 for row in fine], '.1f')} | "
            f"{span([row['groups'] for row in fine], 'd')} | {min(row['coverage'] for row in fine):.1%} | "
            f"{len(checks)} | {max(errors, default=0.0):.0e} |"
        )
    low = sorted((row for row in rows if row.get("coverage", 1) < 0.99), key=lambda row: row["coverage"])
    lines += [
        "",
        "Names below 99 %, with the reason that keeps most of the other parameters in place:",
        "",
        "| name | coverage | reason |",
        "|---|--:|---|",
        *(f"| {row['name']} | {row['coverage']:.1%} | {next(iter(row['pinned_parameters']), '')} |" for row in low),
    ]
    return "\n".join(lines) + "\n"


def span(values: list[Any], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


if __name__ == "__main__":
    sys.exit(main())
