"""What a step of Starlight costs, beside a plain step of SGD.

    python benchmarks/step.py                # on a GPU where there is one, else on the CPU
    python benchmarks/step.py --rounds 30

A step is all that the fit of a star does for a mini-batch, and a plain step what ordinary training does with the same
network, optimizer and images: timm's resnet18, 224 × 224 pixels, batch 32. Rounds are interleaved, and the 20th
percentile of each variant is compared: what disturbs a machine only ever adds. Peak memory is that of a process of its
own, beside one source. Writes benchmarks/results/step-cpu.json (or step-cuda.json) and .md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn.functional import cross_entropy

from starzoo.config import StarConfig
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import as_channels_last, channels_last
from starzoo.models.training.optimizer import make_optimizer
from starzoo.star.endpoints import Endpoints
from starzoo.star.objective import StarlightLoss
from starzoo.symmetry import Permutation

RESULTS = Path(__file__).parent / "results"
NETWORK, BATCH = "resnet18", 32
PLAIN = "plain SGD"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "Starlight (κ = 0)": {},
    "the same, the source permuted for each draw": {"sources_on": "host"},
    "Starlight with distillation (κ = 1)": {"kappa": 1.0},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_step(variant: str) -> Callable[[], None]:
    """A function that takes one step."""
    torch.manual_seed(0)
    network = channels_last(timm.create_model(NETWORK)).to(DEVICE).train()
    images = as_channels_last(torch.randn(BATCH, 3, 224, 224)).to(DEVICE)
    labels = torch.randint(0, 1000, (BATCH,)).to(DEVICE)
    spec = Architecture.from_registry(NETWORK).spec
    source = timm.create_model(NETWORK).state_dict()  # which ordinary training holds too, so that memories compare
    if variant == PLAIN:
        optimizer = make_optimizer(network, StarConfig())

        def plain(source: Mapping[str, torch.Tensor] = source) -> None:
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()

        return plain
    options = dict(VARIANTS[variant])
    sources_on = options.pop("sources_on", "device")
    star = {name: torch.nn.Parameter(value.detach().clone()) for name, value in network.named_parameters()}
    optimizer = make_optimizer(network, StarConfig(), star)
    ends = Endpoints([source], star, sources_on=sources_on)
    ends.align([Permutation.identity(spec)])
    ends.prefetch(0)
    teacher = timm.create_model(NETWORK).to("meta").eval() if "kappa" in options else None
    loss = StarlightLoss(list(star.values()), network, **options)

    def starlight() -> None:
        end = ends.get(0)
        ends.prefetch(0)
        loss.zero_grad()
        prediction = None
        if teacher:
            tensors = {**dict(zip(star, end.parameters, strict=True)), **end.buffers}
            with torch.no_grad():
                prediction = torch.func.functional_call(teacher, tensors, (images,)).softmax(1)
        loss.accumulate(end.parameters, 0.4, images, labels, prediction)
        optimizer.step()

    return starlight


def measure_times(rounds: int) -> dict[str, float]:
    """Seconds of a step by variant: the 20th percentile over interleaved rounds."""
    steps = {variant: make_step(variant) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds + 1):
        for variant, step in steps.items():
            before = now()
            step()
            if number:  # the first one warms up
                times[variant].append(now() - before)
    return {variant: statistics.quantiles(values, n=5)[0] for variant, values in times.items()}


def now() -> float:
    """Wall-clock time on a GPU; on the CPU the process's own, which does not depend on what else runs."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure_peak(variant: str) -> float:
    """Peak memory of three steps in MB, in a process of its own."""
    command = [sys.executable, __file__, "--peak", variant]
    # Every tensor of 64 kB or more is mapped by itself and given back when it is freed: no gaps are counted.
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=exact).stdout)


def print_peak(variant: str) -> None:
    step = make_step(variant)
    if DEVICE.type == "cpu":  # forget what the preparations took at their height
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        print(int(line.split()[1]) * 1024 / 1e6)


def table(found: Mapping[str, Any]) -> str:
    """One line per variant."""
    rows, plain = found["variants"], found["variants"][PLAIN]
    lines = [
        f"timm {NETWORK}, batch {BATCH}, 224 × 224 pixels, {found['device']}, {found['rounds']} interleaved rounds; "
        f"the parameters take {found['parameters_mb']:.0f} MB.",
        "",
        "| step | ÷ plain | seconds | peak memory above plain, in sizes of the parameters |",
        "|---|--:|--:|--:|",
    ]
    for variant, row in rows.items():
        above = (row["peak_mb"] - plain["peak_mb"]) / found["parameters_mb"]
        ratio = row["seconds"] / plain["seconds"]
        lines.append(f"| {variant} | {ratio:.3f} | {row['seconds']:.3f} | {above:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peak", metavar="VARIANT", help="print this variant's peak memory and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.peak)
        return
    times = measure_times(options.rounds)
    size = sum(parameter.numel() for parameter in timm.create_model(NETWORK).parameters()) * 4 / 1e6
    found = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "one thread of a CPU",
        "rounds": options.rounds,
        "parameters_mb": size,
        "variants": {name: {"seconds": times[name], "peak_mb": measure_peak(name)} for name in VARIANTS},
    }
    path = RESULTS / f"step-{DEVICE.type}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
