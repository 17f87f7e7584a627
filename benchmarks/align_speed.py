"""How long weight matching takes, beside the least that it could take.

    python benchmarks/align_speed.py                # all networks, 50 sources to one model, and what threads spare
    python benchmarks/align_speed.py resnet18       # some of them

Two randomly initialized networks each, with random normalization weights, biases and statistics, on one thread. The
*floor* of a sweep is what an implementation by the book cannot do without: the product A·Bᵀ for every place at which a
group meets a tensor, on rows that lie ready, and one assignment for each group, for a wreath group one for each pair of
blocks, with the solver that is used here. The mean of a sweep from the start and one at the end stands for all: early
assignments are harder. Times are CPU seconds, because they do not depend on what else runs; rounds are interleaved.
Only `threads` tells the time by the clock, and needs idle cores.
Writes benchmarks/results/align-speed.json and .md.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from starzoo.align.align import Aligner, align
from starzoo.align.assignment import solve_assignment
from starzoo.align.weight_matching import WeightMatcher
from starzoo.config import AlignConfig
from starzoo.models.architecture import Architecture
from starzoo.symmetry import Permutation

RESULTS = Path(__file__).parent / "results" / "align-speed.json"
NETWORKS = {"resnet18": 5, "resnet50": 3, "vit_small_patch16_224": 3, "vgg16_bn": 3}  # with their rounds
PEERS = {
    "resnet18": 1.3,
    "resnet50": 19.7,
    "vgg16_bn": 115.0,
}  # seconds on one thread: git-re-basin and PLeaS with lapx, at best
MANY = ("resnet18", 50)
SIDE_BY_SIDE = {"resnet18": 8, "vit_small_patch16_224": 8}  # with how many sources

Solver = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or [*NETWORKS, "many", "threads"]:
        if name == "threads":
            results[name] = {each: threads(each, sources) for each, sources in SIDE_BY_SIDE.items()}
        else:
            results[name] = many(*MANY) if name == "many" else pair(name, NETWORKS[name])
        print(name, json.dumps(results[name]), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(results))
    print(table(results))


def pair(name: str, rounds: int) -> dict[str, float]:
    """One pair of networks: medians over rounds."""
    architecture = Architecture.from_registry(name)
    spec = architecture.spec
    fixed, permutee = (random_state(architecture, seed) for seed in (0, 1))
    identity = Permutation.identity(spec)
    matching = WeightMatcher(spec, fixed).match(permutee, identity)
    floor = Floor(WeightMatcher(spec, fixed))
    ends = [permutee, matching.permutation.apply(permutee)]
    times: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[[], object]) -> None:
        before = time.process_time()
        call()
        times.setdefault(what, []).append(time.process_time() - before)

    for _ in range(rounds):
        timed("match", lambda: WeightMatcher(spec, fixed).match(permutee, identity))
        again = WeightMatcher(spec, fixed)
        timed("again", lambda again=again: again.match(permutee, matching.permutation))
        for state in ends:
            gains = floor.gains(state)
            timed("products", lambda state=state: floor.gains(state))
            timed("assignments", lambda gains=gains: floor.assign(gains, solve_assignment))
            timed("scipy", lambda gains=gains: floor.assign(gains, plain_scipy))
    found = {what: statistics.median(values) for what, values in times.items() if what in {"match", "again"}}
    # The start and the end take turns: the mean of the two medians.
    for what in ("products", "assignments", "scipy"):
        found[what] = statistics.fmean(statistics.median(times[what][place::2]) for place in (0, 1))
    return {**found, "sweeps": matching.sweeps, "groups": len(spec.groups), "rounds": rounds}


class Floor:
    """One sweep by the book: every product and every assignment, once."""

    def __init__(self, matcher: WeightMatcher) -> None:
        self.matcher = matcher
        # In these networks all groups within another one take their turn together.
        self.views = {name: each for (turn,) in matcher.turns.values() for name, each in turn.views.items()}
        self.rows = {
            name: [view.rows(matcher.fixed[view.tensor]) for view in views] for name, views in self.views.items()
        }

    def gains(self, state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Every group's products with the permutee, whose rows are gathered as they are needed."""
        return {
            name: [
                fixed @ view.rows(state[view.tensor]).T
                for fixed, view in zip(self.rows[name], self.views[name], strict=True)
            ]
            for name in self.rows
        }

    def assign(self, gains: Mapping[str, list[Tensor]], solve: Solver) -> None:
        """Every group's assignment, and every pair of blocks' one."""
        spec = self.matcher.spec
        for name, group in spec.groups.items():
            blocks = spec.groups[group.within].size if group.within else 1
            size = blocks * group.size
            total = sum(gains[name], start=torch.zeros(size, size)).double().numpy()
            for row in np.split(total, blocks):
                for block in np.split(row, blocks, axis=1):
                    solve(block)


def plain_scipy(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1]


def many(name: str, sources: int) -> dict[str, float]:
    """Many sources aligned to one model, in a process of its own whose memory is the peak of all."""
    command = [sys.executable, __file__, "align-many", name, str(sources)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def align_many(name: str, sources: int) -> None:
    architecture = Architecture.from_registry(name)
    spec = architecture.spec
    fixed, *permutees = (random_state(architecture, seed) for seed in range(1 + sources))
    before = time.process_time()
    aligned = align(spec, fixed, permutees, AlignConfig(method="weights"))
    seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sweeps = statistics.fmean(source.sweeps for source in aligned)
    print(json.dumps({"sources": sources, "seconds": seconds, "peak_gib": peak, "sweeps": sweeps}))


def threads(name: str, sources: int, rounds: int = 3) -> dict[str, float]:
    """Sources matched one after another and side by side, by the clock: medians over rounds."""
    architecture = Architecture.from_registry(name)
    fixed, *permutees = (random_state(architecture, seed) for seed in range(1 + sources))
    aligner = Aligner(architecture.spec, AlignConfig(method="weights"))
    cores = len(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {}

    def timed(what: str, count: int, batches: Sequence[Sequence[Mapping[str, Tensor]]]) -> None:
        torch.set_num_threads(count)
        before = time.perf_counter()
        for batch in batches:
            deque(aligner.match(fixed, batch), maxlen=0)
        times.setdefault(what, []).append(time.perf_counter() - before)

    alone = [[permutee] for permutee in permutees]
    for _ in range(rounds):
        timed("one_thread", 1, alone)
        timed("one_after_another", cores, alone)
        timed("side_by_side", cores, [permutees])
    torch.set_num_threads(1)
    return {what: statistics.median(values) for what, values in times.items()} | {"cores": cores, "sources": sources}


def random_state(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """An initialized network whose normalization layers have weights, biases and statistics of their own."""
    torch.manual_seed(seed)
    model = architecture.build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.log_normal_(0, 0.3)
    return model.state_dict()


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        "CPU seconds on one thread, two randomly initialized networks of timm, plain weight "
        "matching. Floor: products and one assignment for each group, times the sweeps that were taken.",
        "",
        "| network | groups | sweeps | match | floor of a sweep: products + assignments (plain scipy) | match ÷ floor "
        "| matching again, in sweeps of the floor | fastest peer |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in NETWORKS:
        if name in results:
            r = results[name]
            sweep = r["products"] + r["assignments"]
            lines.append(
                f"| {name} | {r['groups']} | {r['sweeps']:.1f} | {r['match']:.2f} | {r['products']:.2f} + "
                f"{r['assignments']:.2f} ({r['scipy']:.2f}) | {r['match'] / (sweep * r['sweeps']):.2f} | "
                f"{r['again'] / sweep:.2f} | {PEERS.get(name, '–')} |"
            )
    if "many" in results and MANY[0] in results:
        r, one = results["many"], results[MANY[0]]
        floor = (one["products"] + one["assignments"]) * r["sweeps"] * r["sources"]
        lines += [
            "",
            f"{r['sources']} sources of {MANY[0]} to one model, with `starzoo.align.align`: {r['seconds']:.1f} s, "
            f"{r['sweeps']:.1f} sweeps each, {r['seconds'] / floor:.2f} of the floor of as many pairs; peak memory "
            f"{r['peak_gib']:.1f} GiB, all sources and results included.",
        ]
    if "threads" in results:
        lines += [
            "",
            "The time of a source by the clock, as a share of that on one thread:",
            "",
            "| network | sources | cores | seconds on one thread | one source after another, products on all cores "
            "| and sources side by side |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for name, r in results["threads"].items():
            one = r["one_thread"]
            lines.append(
                f"| {name} | {r['sources']} | {r['cores']} | {one / r['sources']:.2f} | "
                f"{r['one_after_another'] / one:.2f} | {r['side_by_side'] / one:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["align-many"]:
        align_many(sys.argv[2], int(sys.argv[3]))
    else:
        main()
