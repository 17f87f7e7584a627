"""What is claimed of evaluations stands in the committed results, and their tables are made from these."""

import importlib
import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_a_curve_costs_little_more_than_its_passes():
    script, found = importlib.import_module("benchmarks.curve"), json.loads((RESULTS / "curve.json").read_text())
    assert (RESULTS / "curve.md").read_text() == script.table(found)
    assert set(found) == set(script.NETWORKS)
    for row in found.values():
        assert len(row["seconds"]["curve"]) >= 5
        assert script.ratio(row) <= 1.15


def test_the_average_over_the_star_domain_is_better_than_the_star():
    script, rows = importlib.import_module("benchmarks.bma"), json.loads((RESULTS / "bma.json").read_text())
    assert (RESULTS / "bma.md").read_text() == script.table(rows)

    def mean(way, passes, score):
        return statistics.fmean(row[score] for row in rows if (row["way"], row["passes"]) == (way, passes))

    for passes in (4, 8):
        for score in ("nll", "ece", "brier"):
            assert mean(script.CHOSEN, passes, score) < mean(script.STAR, 1, score)
            assert mean(script.CHOSEN, passes, score) < mean(script.ENSEMBLE, passes, score)
        assert mean(script.CHOSEN, passes, "auroc") < mean(script.ENSEMBLE, passes, "auroc")  # as the README says
    assert mean(script.CHOSEN, 2, "nll") < mean(script.NAIVE, 2, "nll") - 0.05


def test_an_evaluation_on_two_ranks_decodes_each_image_once():
    script = importlib.import_module("benchmarks.evaluation_size")
    found = json.loads((RESULTS / "evaluation-size.json").read_text())
    assert (RESULTS / "evaluation-size.md").read_text() == script.table(found)
    row = found["after"]
    assert (row["images"], row["classes"], row["models"], row["ranks"]) == (50_000, 1000, 28, 2)
    assert (row["decodes"], row["most_decodes_of_an_image"]) == (50_000, 1)
