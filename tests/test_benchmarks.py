"""The committed tables are what their scripts make of the committed results, and say what is claimed of them."""

from __future__ import annotations

import importlib
import json
import re
import statistics
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRIPTS = {"symmetry": "symmetry_sweep", "symmetry-maximality": "symmetry_maximality"}


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_table_is_made_from_the_results(name):
    script, found = importlib.import_module(f"benchmarks.{SCRIPTS[name]}"), results(name)
    assert (RESULTS / f"{name}.md").read_text() == script.table(found["versions"], found["rows"])


def test_the_table_of_methods_is_made_from_the_results():
    script = importlib.import_module("benchmarks.matching")
    found = {
        name: results(f"matching-{name}") for name in script.FAMILIES if (RESULTS / f"matching-{name}.json").exists()
    }
    assert len(found) >= 5
    assert (RESULTS / "matching.md").read_text() == script.table(found)
    for rows in found.values():
        assert all(sum(row["method"] == method for row in rows) >= 6 for method in ("none", *script.METHODS))


def test_matching_takes_no_longer_than_what_is_claimed():
    script, found = importlib.import_module("benchmarks.align_speed"), results("align-speed")
    assert (RESULTS / "align-speed.md").read_text() == script.table(found)
    for name in script.NETWORKS:
        sweep = found[name]["products"] + found[name]["assignments"]
        assert found[name]["match"] <= 1.3 * sweep * found[name]["sweeps"]
        assert found[name]["again"] <= 1.3 * sweep
    assert found["many"]["peak_gib"] < 8


def test_a_fit_loads_as_fast_as_torch_and_the_same_with_any_number_of_processes():
    script, found = importlib.import_module("benchmarks.loader"), results("loader")
    assert (RESULTS / "loader.md").read_text() == script.table(found)
    ours, theirs = (found["images_per_second"][name] for name in (script.STARZOO, script.TORCH))
    assert all(ours[workers] >= 0.95 * theirs[workers] for workers in ("0", "1", "2"))
    assert ours["2"] > 1.5 * ours["1"]
    assert len(set(found["sha256"].values())) == 1


def test_a_start_with_known_images_reads_none_of_them(tmp_path):
    script, found = importlib.import_module("benchmarks.opening"), results("opening")
    assert (RESULTS / "opening.md").read_text() == script.table(found)
    for first, *later in found.values():
        assert first["images_read"] > 0
        assert all((row["images_read"], row["digest"]) == (0, first["digest"]) for row in later)
        assert all(row["open"] + row["fingerprint"] <= 2 for row in later)
    script.make_folder(tmp_path, 40)
    assert len(list(tmp_path.rglob("*.png"))) == 40


def test_two_processes_share_the_first_alignment_and_agree():
    script, found = importlib.import_module("benchmarks.first_alignment"), results("first-alignment")
    assert (RESULTS / "first-alignment.md").read_text() == script.table(found)
    assert len({row["permutations"] for row in found["rows"]}) == 1


def test_the_table_of_augmentation_is_made_from_the_results():
    script, found = importlib.import_module("benchmarks.augmentation"), results("augmentation")
    assert (RESULTS / "augmentation.md").read_text() == script.table(found)
    assert all(len(rows) == 3 for variants in found.values() for rows in variants.values())


def rows_of(name, variant):
    """The rows of one variant of an experiment, three seeds or more."""
    rows = [row for row in results(f"study/{name}")["rows"] if row["variant"] == variant]
    assert len({row["seed"] for row in rows}) >= 3
    return rows


def test_every_experiment_of_the_study_can_be_read():
    script = importlib.import_module("benchmarks.study.experiment")
    files = list(script.HERE.glob("*.yaml"))
    order = importlib.import_module("benchmarks.study.report").ORDER
    assert {file.stem for file in files} == set(order)
    for file in files:
        experiment = script.load_experiment(file)
        for variant in experiment.variants:
            assert experiment.star_of(variant, 1).seed == 1
            assert experiment.sources_of(variant) <= experiment.sources


def test_no_experiment_reports_images_or_members_that_its_settings_were_chosen_on():
    script, recipes = (
        importlib.import_module("benchmarks.study.experiment"),
        importlib.import_module("benchmarks.zoos").RECIPES,
    )
    for file in script.HERE.glob("*.yaml"):
        experiment = script.load_experiment(file)
        tuned = recipes[experiment.tuned_on]
        for zoo in {experiment.zoo, *(experiment.zoo_of(variant) for variant in experiment.variants)}:
            used = set(recipes[zoo].seeds(experiment.sources + experiment.holdouts))
            assert not used & set(tuned.seeds(tuned.members)) or recipes[zoo].model_args != tuned.model_args
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        with pytest.raises(ValidationError, match="is reported; settings are chosen on a zoo named tuning-"):
            script.Experiment.model_validate({**content, "tuned_on": experiment.zoo})
    tuning = importlib.import_module("benchmarks.tuning")
    assert set(tuning.STARS) == {zoo for zoo in recipes if zoo.startswith("tuning-")}
    assert {row["zoo"] for row in results("tuning")} <= set(tuning.STARS)


def test_the_page_of_results_is_made_from_the_results():
    report = importlib.import_module("benchmarks.study.report")
    assert report.PAGE.read_text(encoding="utf-8") == report.page()
    assert {"cifar", "digits"} <= {file.stem for file in report.measured()}


@pytest.mark.parametrize("name", ["cifar", "digits"])
def test_stars_are_better_connected_than_those_of_the_paper_at_equal_steps(name):
    def mean(variant, measure):
        return statistics.fmean(row["paths"]["star-heldout"][measure] for row in rows_of(name, variant))

    for measure in ("barrier", "highest_loss", "excess"):
        assert mean("starzoo", measure) < mean("the paper's algorithm", measure)
    assert mean("starzoo", "worst_accuracy") > mean("the paper's algorithm", "worst_accuracy")


def test_a_star_keeps_three_quarters_of_the_gain_of_an_ensemble():
    tables = importlib.import_module("benchmarks.study.tables")
    assert all(tables.kept(row, "nll") >= 0.75 for row in rows_of("cifar", "starzoo"))


def test_a_step_costs_what_is_claimed():
    script, found = importlib.import_module("benchmarks.step"), results("step-cpu")
    assert (RESULTS / "step-cpu.md").read_text() == script.table(found)
    plain = found["variants"][script.PLAIN]
    step = found["variants"]["Starlight (κ = 0)"]
    assert step["seconds"] <= 1.05 * plain["seconds"]
    assert step["peak_mb"] <= plain["peak_mb"] + 2 * found["parameters_mb"]


def test_every_architecture_is_traced_and_everything_checked_is_proved():
    rows = results("symmetry")["rows"]
    assert len(rows) == 1371
    assert not [row["name"] for row in rows if "error" in row or row["unsupported_operators"]]
    checked = [row for row in rows if row["verify"]]
    assert all(row["verify"] for row in rows if row["parameters"] <= 120e6)
    large = {row["family"] for row in rows if row["parameters"] > 120e6}
    assert large == {row["family"] for row in checked if row["parameters"] > 120e6}
    for row in checked:
        proof = row["verify"]
        assert proof["passed"], row["name"]
        assert proof["relative_error"] < (1e-6 if proof["rounded_in"] else 1e-9), row["name"]
    assert sum(row["coverage"] >= 0.99 for row in rows) >= 0.95 * len(rows)


def test_no_axis_is_pinned_that_could_move():
    rows = results("symmetry-maximality")["rows"]
    assert len(rows) >= 40
    assert not [row["network"] for row in rows if row["missed"] or row["undecided"] or row["merged"]]


def test_the_readme_quotes_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\s+", " ", text)
    summary = importlib.import_module("benchmarks.symmetry_sweep").summary(results("symmetry")["rows"])
    assert f"All {summary['names']:,} of timm" in readme
    assert f"and {summary['passed']:,} proved" in readme
    assert importlib.import_module("benchmarks.fair").summary(results("fair")["resnet-quarter"]) in text


def test_the_fair_table_is_made_from_the_results_and_has_every_baseline():
    script, found = importlib.import_module("benchmarks.fair"), results("fair")
    assert (RESULTS / "fair.md").read_text() == script.tables(found)
    labels = importlib.import_module("starzoo.evaluate.results").ROLE_LABELS
    baselines = get_args(importlib.import_module("starzoo.config").Baseline)
    assert set(found) == set(script.STARS)
    for rows in found.values():
        assert [row["seed"] for row in rows] == [0, 1, 2]
        assert all({labels[kind] for kind in baselines} <= set(row["rows"]) for row in rows)


def test_a_rate_by_trials_is_compared_with_the_best_of_a_grid():
    script, found = importlib.import_module("benchmarks.auto_rate"), results("auto-rate")
    assert (RESULTS / "auto-rate.md").read_text() == script.table(found)
