"""Plant one-line faults in the library, and count how many of them the tests catch.

Each fault is one changed line. The tests of the package that it lies in run against a copy of the repository with that
one change; the fault is caught if a test fails. A fault whose line is not found, or not once, is an error here: the
list follows the code.

    python -m benchmarks.planted_faults --out benchmarks/results/planted_faults.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

FAULTS: list[tuple[str, str, str]] = [
    # the paper's loss and draws
    ("star/objective.py", "* ((1 - t) / self.draws)", "* (t / self.draws)"),
    ("star/objective.py", "self.kappa / (1 + self.kappa)", "self.kappa / (2 + self.kappa)"),
    ("star/objective.py", "torch.lerp(star, endpoint, t, out=point)", "torch.lerp(endpoint, star, t, out=point)"),
    ("star/sampling.py", "number = step * self.draws + index", "number = step + index"),
    (
        "star/sampling.py",
        "probability = self.config.mu / (1 + self.config.mu)",
        "probability = self.config.mu / (2 + self.config.mu)",
    ),
    ("star/endpoints.py", "self._prefetched[0] == index", "self._prefetched[0] != index"),
    ("star/loss_monitor.py", "[sum(column) if rank == 0 else 0.0", "[sum(column) if rank >= 0 else 0.0"),
    ("star/run/checkpoint.py", "checkpoints[: max(0, end - _KEEP)]", "checkpoints[: max(0, end)]"),
    ("star/run/checkpoint.py", "return not damaged and hashes.keys() == _FILES", "return hashes.keys() == _FILES"),
    # alignment and symmetry
    (
        "align/assignment.py",
        "if len(gain) > _MIN_PRICED_SIZE else -gain)",
        "if len(gain) > _MIN_PRICED_SIZE else gain)",
    ),
    (
        "align/weight_matching.py",
        "if after - before <= _ROUNDING * abs(before):",
        "if before - after <= _ROUNDING * abs(before):",
    ),
    (
        "symmetry/permutation.py",
        "joint: Index = ((rows // inner) * len(head) + head[:, None]) * inner + rows % inner",
        "joint: Index = ((rows // inner) * len(head) + head[:, None]) * inner + rows // inner",
    ),
    (
        "symmetry/permutation.py",
        "or (np.sort(index, axis=-1) != identity).any()",
        "or (np.sort(index, axis=0) != identity).any()",
    ),
    (
        "symmetry/rules/contract.py",
        "for term in (unify(x[2], mat2[1]), x[1], mat2[2]):",
        "for term in (unify(x[2], mat2[1]), x[1]):",
    ),
    (
        "symmetry/wreath.py",
        "if all(monomial.count(outer) == 1 for monomial in around)",
        "if any(monomial.count(outer) == 1 for monomial in around)",
    ),
    ("symmetry/terms.py", "return Free(size) if size > 1 else Pinned(size)", "return Free(size)"),
    (
        "symmetry/verification.py",
        "return self.relative_error <= self.tolerance and self.weights_changed and controls_passed",
        "return self.relative_error <= self.tolerance and self.weights_changed",
    ),
    # data
    (
        "data/augmentation.py",
        "columns = columns + (draws[:, 2:] * (2 * horizontal + 1)).long()",
        "columns = columns + (draws[:, 2:] * (2 * horizontal)).long()",
    ),
    ("data/split.py", "[batch[shard::num_shards] for batch", "[batch[shard::1] for batch"),
    (
        "data/loader.py",
        "return replace(self, batches=self.batches[batches:])",
        "return replace(self, batches=self.batches[batches + 1 :])",
    ),
    # hub
    ("hub/retry.py", "or time.monotonic() - start + wait > max_wait", ""),
    ("hub/listing.py", 'or ".." in path.split("/")', ""),
    ("hub/ref.py", "if parts is None or (at and not is_revision(revision)):", "if parts is None:"),
    # evaluation and report
    (
        "evaluate/repair.py",
        "(shares * (stds.square() + (means - mean).square())).sum(0)",
        "(shares * stds.square()).sum(0)",
    ),
    ("evaluate/domain_average.py", "log - float(np.log(count))", "log - float(np.log(count + 1))"),
    (
        "evaluate/results.py",
        "*(value - chord for value, chord in zip(loss",
        "*(chord - value for value, chord in zip(loss",
    ),
    ("evaluate/evaluator.py", "if self.estimates and estimate:", "if self.estimates:"),
    (
        "evaluate/chance_check.py",
        "if chance_p_value(answers, labels) > _MAX_P_VALUE:",
        "if chance_p_value(answers, labels) > 1:",
    ),
    (
        "report/summary.py",
        "if value and value.mean == best_means[score]",
        "if value and value.mean != best_means[score]",
    ),
    # root
    (
        "metrics.py",
        "return torch.logsumexp(members, dim=0) - torch.log(torch.tensor(float(len(members))))",
        "return torch.logsumexp(members, dim=1) - torch.log(torch.tensor(float(len(members))))",
    ),
    ("metrics.py", "return float(gap.abs().sum() / len(labels))", "return float(gap.sum() / len(labels))"),
    ("files.py", "        os.fsync(file.fileno())", "        file.fileno()"),
    ("errors.py", "    exit_code = 7\n", "    exit_code = 6\n"),
    (
        "workflows/verify.py",
        "actual, expected = sha256_file(folder / name), manifest.files[name]",
        "actual = expected = manifest.files[name]",
    ),
    ("star/run/lock.py", "if rank() == 0 and", "if rank() == 1 and"),
    # weights, batch norm, classes
    ("models/weights.py", "torch.lerp(tensor, b[name], t)", "torch.lerp(b[name], tensor, t)"),
    ("models/batch_norm.py", "layer.momentum = None", "layer.momentum = 0.1"),
    (
        "models/licenses.py",
        "return _RANKS.get(license, _COPYLEFT) >= rank",
        "return _RANKS.get(license, _COPYLEFT) > rank",
    ),
    # training
    ("models/training/optimizer.py", "factor = 0.5 * (1 + math.cos(", "factor = 0.5 * (1 - math.cos("),
    ("models/training/optimizer.py", '{"nesterov": config.nesterov and config.momentum > 0}', '{"nesterov": False}'),
]
TESTS_OF_A_ROOT_MODULE = {"errors.py": ["tests/cli/test_errors.py"], "files.py": ["tests/star", "tests/workflows"]}


def tests_of(file: str) -> list[list[str]]:
    """The tests that a change of a file is judged by: those of its own module, then those of its package."""
    package, name = file.partition("/")[0], Path(file).stem
    own = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob(f"test_{name}.py"))
    rest = TESTS_OF_A_ROOT_MODULE.get(file, []) if file == package else [f"tests/{package}"]
    return [tests for tests in (own, rest) if tests]


def failing(copy: Path, tests: list[str]) -> str | None:
    """The first test that fails, or None; raises RuntimeError if the tests cannot run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--timeout", "120", *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    names = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if not names:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return names[0]


def plant(copy: Path, file: str, before: str, after: str) -> None:
    """Change one line of a copy of the library; raise ValueError if it is not there exactly once."""
    path = copy / "starzoo" / file
    text = path.read_text(encoding="utf-8")
    if text.count(before) != 1:
        raise ValueError(f"{file}: {text.count(before)} times: {before}")
    path.write_text(text.replace(before, after), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/planted_faults.json")
    parser.add_argument("--check", action="store_true", help="only see that every fault can be planted")
    parser.add_argument("--first", type=int, default=0, help="begin at this fault")
    options = parser.parse_args()
    rows = []
    for file, before, after in FAULTS[options.first :]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info"))
            plant(copy, file, before, after)
            if options.check:
                continue
            # The copy comes before what is installed, `starzoo.cli` and `starzoo.model_cards` with it.
            for name in ("cli", "model_cards"):
                (copy / "starzoo" / name).symlink_to(copy / name)
            started = time.monotonic()
            by = next(filter(None, (failing(copy, tests) for tests in tests_of(file))), None)
        rows.append({"file": file, "line": before.strip(), "fault": after.strip(), "caught_by": by})
        print(f"{by or 'SURVIVED':60} {file}: {after.strip()[:60]} ({time.monotonic() - started:.0f} s)", flush=True)
        options.out.write_text(
            json.dumps(
                {"caught": sum(bool(row["caught_by"]) for row in rows), "of": len(rows), "faults": rows}, indent=1
            )
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
