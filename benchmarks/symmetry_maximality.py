"""How much symmetry is missed: what `infer` frees, of what a search over gradients says could move, on small networks.

    python -m benchmarks.symmetry_maximality

takes the networks of tests/symmetry/maximality (five minutes on one core), and writes
benchmarks/results/symmetry-maximality.json and .md. What is missed there is explained in networks.py beside it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from starzoo.models.spec_cache import spec_cache_version
from starzoo.symmetry import infer
from tests.symmetry.maximality import find_missed
from tests.symmetry.maximality.networks import NETWORKS, SLOW, TIED

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    rows = []
    for name, (build, pixels) in (NETWORKS | SLOW).items():
        torch.manual_seed(0)
        model, example, started = build(), torch.zeros(1, 3, pixels, pixels), time.perf_counter()
        report = find_missed(model, example, infer(model, example))
        rows.append({"network": name, **asdict(report), "seconds": round(time.perf_counter() - started, 2)})
        print(name, rows[-1]["free"], rows[-1]["missed"], rows[-1]["tied"], rows[-1]["blockwise"], flush=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (RESULTS / "symmetry-maximality.json").write_text(
        f'{{"versions": {json.dumps(spec_cache_version())}, "rows": [\n{lines}\n]}}\n'
    )
    (RESULTS / "symmetry-maximality.md").write_text(table(spec_cache_version(), rows))


def table(versions: str, rows: list[dict]) -> str:
    def total(key: str) -> int:
        return sum(row[key] if isinstance(row[key], int) else len(row[key]) for row in rows)

    free, missed = total("free"), total("missed")
    return "\n".join([
        f"What the rules miss on {len(rows)} small networks ({versions}), made by",
        "`python -m benchmarks.symmetry_maximality`.",
        "",
        f"- Axes free, of the axes that could be permuted: {free} of {free + missed} ({free / (free + missed):.1%}).",
        f"- Pinned: {total('proven')} are proven not to move by gradients, {total('excluded')} cannot be moved by an "
        f"exchange that is alike on all axes of one length, {total('idle')} have no influence on the output, "
        f"{total('undecided')} are undecided.",
        f"- Groups that are tied too much: {total('tied')}; that could act differently in each block of another group: "
        f"{total('blockwise')}; that could be one group with another: {total('merged')}.",
        "",
        "Tied too much, and why:",
        "",
        *(f"- {name}: {why}." for name, (_, why) in TIED.items()),
        "",
        "Blockwise are the inputs of grouped convolutions (and the frequencies of rotary embeddings): the weight is "
        "(groups × outputs, inputs of a group), and no term of one axis can say what depends on another axis.",
        "",
        "| network | free | proven | excluded | no influence | missed | tied | blockwise |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row['network']} | {row['free']} | {row['proven']} | {row['excluded']} | {len(row['idle'])} | "
            f"{len(row['missed'])} | {len(row['tied'])} | {len(row['blockwise'])} |"
            for row in rows
        ),
        "",
    ])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
