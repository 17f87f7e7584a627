import ast
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

import starzoo
from starzoo.config import Beta, DataConfig, RunConfig, StarConfig, Uniform
from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import UsageError
from starzoo.evaluate.results import Bf16Error, DomainSampling, Evaluation, PathCurve, PredictionScores
from starzoo.models.architecture import Architecture
from starzoo.models.record import ModelRecord
from starzoo.report.card import render, write_card
from starzoo.report.markdown import escape, load_template
from starzoo.star.manifest import StarManifest
from starzoo.text import clean
from tests.hostile import HOSTILE as H02
from tests.hostile import full_manifest, with_every_string

T = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = {"star-source": 0.01, "star-heldout": 0.04, "source-source": 0.3, "source-source-unaligned": 2.0}
DIGEST, COMMIT = "0123456789abcdef" * 4, "c0ffee" * 6 + "beef"
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def make_path(kind, bump, a="star", b="m0", split="test"):
    loss = tuple(0.05 + 4 * t * (1 - t) * bump for t in T)
    return PathCurve(
        kind=kind, a=a, b=b, split=split, t=T, loss=loss, accuracy=tuple(0.98 - value / 10 for value in loss)
    )


def make_quality(role, accuracy, nll=0.1, ece=0.02, name="m", passes=1, split="test"):
    return PredictionScores(name=name, role=role, split=split, accuracy=accuracy, nll=nll, ece=ece, passes=passes)


def make_evaluation(star=0.95, ensemble=0.97, bumps=KINDS, split="test", name="m"):
    return Evaluation(
        paths=tuple(
            make_path(kind, bump * (1 + number / 10), b=f"{name}{number}", split=split)
            for kind, bump in bumps.items()
            for number in range(3)
        ),
        qualities=(
            *(
                make_quality("source", 0.94 + number / 100, 0.2, name=f"{name}{number}", split=split)
                for number in range(3)
            ),
            make_quality("held-out", 0.945, name=f"{name}3", split=split),
            make_quality("aligned-mean", 0.5, 1.5, name="aligned mean", split=split),
            make_quality("star", star, 0.15, name="star", split=split),
            make_quality("ensemble", ensemble, 0.12, 0.01, name="ensemble of 3", passes=3, split=split),
        ),
    )


def make_manifest(evaluation="full", **changes):
    sources = tuple(
        ModelRecord(
            name=f"m{number}", repo=f"me/net_{number}", sha=COMMIT, files={"model.safetensors": DIGEST}, license="mit"
        )
        for number in range(3)
    )
    values = {
        "name": "my-star",
        "architecture": Architecture(name="test_resnet", num_classes=3, label_names=("cat", "dog", "eel")),
        "sources": sources,
        "holdouts": (ModelRecord(name="m3"),),
        "config": RunConfig(data=DataConfig(dataset="me/pictures", revision=COMMIT)),
        "data_fingerprint": DIGEST,
        "parameters": 12_345,
        "groups": 4,
        "coverage": 0.987,
        "evaluation": make_evaluation() if evaluation == "full" else evaluation,
        "software": {"torch": "2.10"},
    }
    return StarManifest(**(values | changes))


def tables(card):
    """Every table of a card: rows of cells, each cell as (text, whether it is bold)."""
    found = []
    for token, inside in zip(tokens := PARSER.parse(ModelCard(card).text), [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in {"th_open", "td_open"}:
            kinds = [child.type for child in inside.children]
            text = "".join(child.content for child in inside.children)
            found[-1][-1].append((text, "strong_open" in kinds))
    return found


def structure(card):
    """What Markdown makes of a card, without its words."""
    shape = []
    for token in PARSER.parse(ModelCard(card).text):
        shape.append((token.type, token.content if token.type == "html_block" else ""))
        shape += [(child.type, child.attrs.get("href", "")) for child in token.children or () if child.type != "text"]
    return shape


def blocks(card, language):
    return [
        token.content
        for token in PARSER.parse(ModelCard(card).text)
        if token.type == "fence" and token.info == language
    ]


@pytest.mark.usefixtures("real_plots")
def test_a_repaired_path_is_never_shown_as_a_straight_line(tmp_path):
    plain = make_manifest()
    mended = make_manifest(plain.evaluation.model_copy(update={"repaired": True}))
    before, after = render(plain), render(mended)
    assert "repaired" not in before
    assert "**The paths are repaired**" in after
    assert "Every path here is repaired: the points between its ends have the channel statistics of the ends" in after
    results = ModelCard(after).data.to_dict()["model-index"][0]["results"][0]["metrics"]
    barriers = [metric["name"] for metric in results if metric["type"] == "loss_barrier"]
    assert barriers
    assert all(name.startswith("loss barrier of a repaired path, ") for name in barriers)
    write_card(tmp_path, mended)
    assert "position on the repaired path" in plot_texts(tmp_path / "plots" / "paths-test.svg", mended.evaluation)


def test_what_bf16_changes_is_one_sentence():
    plain = make_manifest()
    rounded = plain.evaluation.model_copy(update={"rounding": Bf16Error(nll=0.00123, accuracy=0.0005)})
    said = (
        "- Forward passes were in bfloat16: the star's own negative log-likelihood differs by 0.0012 nats, and its "
        "accuracy by 0.05 percentage points, from those in float32 on the same images.\n"
    )
    assert said in render(make_manifest(rounded))
    assert "bfloat16" not in render(plain)
    assert Evaluation.model_validate_json(rounded.model_dump_json()) == rounded


def table_with(card, header):
    """The first table with a heading."""
    return next(table for table in tables(card) if header in {text for text, _ in table[0]})


def test_training_steps_are_stated_where_they_are_known():
    def steps(**changes):
        card = render(make_manifest(**changes))
        [table] = [table for table in tables(card) if ("ECE (%)", False) in table[0]]
        header, *rows = ([text for text, _ in row] for row in table)
        return header, {row[0]: row[-1] for row in rows}, " ".join(card.split())

    header, found, card = steps()  # as old stars are
    assert "steps of" not in card
    header, found, card = steps(steps=2340)
    assert header[-1] == "training"
    assert found == {
        "mean of 3 sources": "–",
        "most accurate source (m2)": "–",
        "held-out (m3)": "–",
        "aligned mean of the sources": "–",
        "star (this model)": "1",
        "ensemble of 3 sources": "–",
    }
    assert "in fits of this star (2,340 steps of" in card
    assert "How many training steps the sources took is not recorded." in card
    sources = make_manifest().sources
    known = [source.model_copy(update={"steps": 624}) for source in sources]
    assert "The sources took 1,872 training steps (624 each)." in steps(steps=2340, sources=known)[2]
    assert "is not recorded." in steps(steps=2340, sources=[*known[:2], sources[2]])[2]
    assert (
        "The sources took 1,249 training steps."
        in steps(steps=2340, sources=[known[0], known[1].model_copy(update={"steps": 625})])[2]
    )


def test_a_star_of_an_earlier_version_is_still_read():
    file = Path(__file__).parents[2] / "model_cards" / "cifar10-star" / "star.json"
    old = json.loads(file.read_bytes())
    old.pop("steps", None)
    old["config"]["evaluate"].pop("precision", None)
    old["evaluation"].pop("rounding", None)
    for model in (*old["sources"], *old["holdouts"]):
        model.pop("steps", None)
    manifest = StarManifest.model_validate(old)
    assert (manifest.steps, manifest.evaluation.rounding, manifest.config.evaluate.precision) == (None, None, "fp32")


def plot_texts(file, evaluation):
    """What stands in a figure of paths; the SVG draws its letters as shapes."""
    from starzoo.report.plots import plot_paths

    assert file.is_file()
    return str(plot_paths(evaluation, "test").get_supxlabel())


def test_front_matter_is_read_by_the_hubs_own_parser():
    data = ModelCard(render(make_manifest(), "me/star")).data
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert data.license == "mit"
    assert data.base_model == ["me/net_0", "me/net_1", "me/net_2"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.datasets == ["me/pictures"]
    assert {"starzoo", "star-model"} <= set(data.tags)


def test_evaluation_results_are_read_by_the_hubs_own_parser():
    manifest = make_manifest()
    card = ModelCard(render(manifest))
    results = {(result.metric_type, result.metric_name): result for result in card.data.eval_results}
    accuracy = results["accuracy", "accuracy of the star"]
    assert (accuracy.metric_value, accuracy.dataset_type, accuracy.dataset_split) == (0.95, "me/pictures", "test")
    assert accuracy.dataset_revision == COMMIT
    barrier = results["loss_barrier", "loss barrier, star to held-out (mean of 3)"]
    assert barrier.metric_value == pytest.approx(manifest.evaluation.summarize("star-heldout").mean, abs=1e-6)
    assert card.data.model_name == "my-star"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_digits_and_folders_are_no_data_sets_of_the_hub():
    for dataset in ("digits", "/some/where/pictures", "cifar"):
        data = ModelCard(render(make_manifest(config=RunConfig(data=DataConfig(dataset=dataset))))).data
        assert data.datasets is None


def test_the_connectivity_table_holds_the_measured_values():
    card = render(make_manifest())
    table = table_with(card, "path")
    assert [row[0][0] for row in table] == [
        "path",
        "star to source",
        "star to held-out",
        "source to source, aligned",
        "source to source, not aligned",
    ]
    assert [cell for cell, _ in table[2][1:]] == [
        "3",
        "0.044 ± 0.004",
        "0.040 to 0.048",
        "0.098",
        "97.02",
        "0.044 ± 0.004",
        "0.44 ± 0.04",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_bold_marks_the_best_value_of_each_score(seed):
    values = [((seed * 7 + step * 5) % 11) / 10 for step in range(4)]
    roles = ("held-out", "aligned-mean", "star", "ensemble")
    rows = [
        make_quality(role, value, 1.5 - value, abs(value - 0.45), name=role)
        for role, value in zip(roles, values, strict=True)
    ]
    card = render(make_manifest(Evaluation(paths=(), qualities=tuple(rows))))
    [_, *body] = table_with(card, "ECE (%)")
    shown = dict(zip(roles, body, strict=True))
    for column, best in ((1, max(values)), (2, max(values)), (3, min(values, key=lambda value: abs(value - 0.45)))):
        bold = {values[roles.index(role)] for role in roles if shown[role][column][1]}
        assert best in bold
        assert len({abs(value - 0.45) if column == 3 else value for value in bold}) == 1


def test_bold_goes_by_the_value_and_not_by_its_rounding():
    rows = (make_quality("star", 0.951001), make_quality("ensemble", 0.951002, passes=2))
    body = table_with(render(make_manifest(Evaluation(paths=(), qualities=rows))), "ECE (%)")[1:]
    assert [(row[1]) for row in body] == [("95.10", False), ("95.10", True)]


def test_the_most_accurate_source_has_its_own_row():
    body = {row[0][0]: [cell for cell, _ in row[1:]] for row in table_with(render(make_manifest()), "ECE (%)")}
    assert body["mean of 3 sources"][0] == "95.00 ± 1.00"
    assert body["most accurate source (m2)"][0] == "96.00"
    assert body["ensemble of 3 sources"][-2] == "3"


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (
            make_evaluation(star=0.93),
            "93.00 %: below the mean of its 3 sources (95.00 %), below the most accurate source",
        ),
        (make_evaluation(star=0.93), "and below their ensemble (97.00 %, at 3 forward passes per image)"),
        (
            make_evaluation(star=0.99),
            "99.00 %: above the mean of its 3 sources (95.00 %), above the most accurate source",
        ),
        (make_evaluation(star=0.99), "and above their ensemble (97.00 %, at 3 forward passes per image)"),
        (make_evaluation(), "0.150 nats: better than the mean of its 3 sources (0.200), better than the most accurate"),
        (make_evaluation(), "and worse than their ensemble (0.120, at 3 forward passes per image)"),
        (make_evaluation(star=0.9500049), "level with the mean of its 3 sources (95.00 %), below"),
        (make_evaluation(star=0.93), "A star that predicts worse has lower barriers for that reason alone"),
        (make_evaluation(), "is 0.044 ± 0.004 nats (3 paths), lower than 0.330 ± 0.030 nats (3 paths) between"),
        (make_evaluation(bumps=KINDS | {"star-heldout": 0.31}), "no better than they are to each other"),
        (make_evaluation(bumps=KINDS | {"star-heldout": 0.28}), "though the two ranges overlap"),
        (make_evaluation(bumps={"star-source": 0.01}), "No held-out model was measured"),
        (make_evaluation(), "highest in accuracy: ensemble of 3 sources (97.00 %, 3 forward passes per image); lowest"),
        (make_evaluation(), "Highest in accuracy at one forward pass: most accurate source (96.00 %)"),
        (
            make_evaluation(star=0.97),
            "highest in accuracy: star and ensemble of 3 sources (97.00 %, from 1 forward pass",
        ),
        (None, "It has not been evaluated"),
    ],
)
def test_the_card_begins_with_who_wins(evaluation, said):
    assert said in render(make_manifest(evaluation))


def test_the_star_domain_is_compared_with_an_ensemble_of_as_many_passes():
    evaluation = make_evaluation()
    domain = make_quality("domain", 0.96, 0.14, passes=3).model_copy(update={"auroc": 0.875})
    baselines = [
        each.model_copy(update={"auroc": 0.9375}) if each.role == "ensemble" else each for each in evaluation.qualities
    ]
    choice = DomainSampling(t=Uniform(low=0.25, high=0.75), samples=3, nll=0.1)
    found = evaluation.model_copy(
        update={"qualities": (*baselines, domain), "domain": choice, "validation_images": 20, "images": {"test": 9}}
    )
    card = render(make_manifest(found))
    assert "3 points of the star domain (t from 0.25 to 0.75, chosen on 20 validation images) has an accuracy" in card
    assert (
        "An ensemble at as many forward passes has 97.00 % and 0.120 nats; the AUROC of errors is 0.8750, and 0.9375 "
        "of the ensemble." in card
    )


def test_a_star_that_wins_is_not_warned_of():
    assert "predicts worse" not in render(make_manifest(make_evaluation(star=0.99)))


@pytest.mark.parametrize(
    ("evaluation", "said", "unsaid"),
    [
        (None, "no commit recorded", "plots/"),
        (
            make_evaluation(bumps={"star-source": 0.1}),
            "Not measured: star to held-out, source to source, aligned",
            "nan",
        ),
        (Evaluation(paths=(), qualities=(make_quality("star", 0.9),)), "Not measured: star to source", "paths-test"),
        (
            Evaluation(paths=(make_path("star-source", 0.1),), qualities=()),
            "Not measured: source, held-out",
            "quality-",
        ),
        (make_evaluation(split="train"), "train images", "test images"),
    ],
)
def test_a_card_says_what_is_missing(evaluation, said, unsaid):
    sources = (ModelRecord(name="m0", repo="me/net"), ModelRecord(name="m1"))
    card = render(make_manifest(evaluation, sources=sources, holdouts=(), software={}))
    assert "No model was held out" in card
    assert said in card
    assert unsaid not in card
    assert "not recorded" in card
    assert not re.search(r"undefined|None(?!\])|\n\n\n", card)
    assert all(len(table) > 1 for table in tables(card))


def test_a_variable_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="is undefined"):
        load_template("star.md.jinja").render()


def test_other_splits_come_after_the_test_split():
    both = [make_evaluation(split=split) for split in ("train", "test")]
    evaluation = Evaluation(paths=both[0].paths + both[1].paths, qualities=both[0].qualities + both[1].qualities)
    card = render(make_manifest(evaluation))
    assert 0 < card.index("paths-test.png") < card.index("The same on the train images") < card.index("paths-train.png")
    assert {result.dataset_split for result in ModelCard(card).data.eval_results} == {"train", "test"}


HOSTILE = [
    '"]\n---\nlicense: apache-2.0\n',
    "x\n---\nlicense: apache-2.0\n---\n",
    "<script>alert(1)</script><!-- ",
    "| pipes | and | more |\n|---|---|",
    "\x1b[31mred\x1b[0m\x07\x9b",
    "[a](javascript:alert(1)) ![b](https://evil.example/c.png) <https://evil.example>",
    "``` ` ~~~ ```\n# heading",
    "{{ 7 * 7 }}{% raw %}",
    "**b** _i_ ~~s~~ \\| $x$ &lt;i&gt; www.evil.example",
    "\u202eevil\u2028\u0000",
    "- a\n- b\n\n</details>",
    "$(touch /tmp/x) '; rm -rf ~ #",
]


def with_strings(text):
    """A manifest with the same words wherever a stranger could have put them."""
    record = ModelRecord(name=text, repo=text, sha=text, files={text: text}, license=text)
    local = ModelRecord(name=f"{text}2", files={"model.safetensors": text})
    return make_manifest(
        make_evaluation(name=text),
        name=text,
        architecture=Architecture(name=text, num_classes=2, label_names=(text, text)),
        sources=(record, local),
        holdouts=(record.model_copy(update={"name": f"{text}3"}),),
        data_fingerprint=text,
        config=RunConfig(
            data=DataConfig(dataset=text, name=text, train_split=text, test_split=text, image_column=text)
        ),
        software={text: text},
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_p03_hostile_strings_change_words_only(text):
    card, plain = render(with_strings(text), "me/star"), render(with_strings("plain"), "me/star")
    assert structure(card) == structure(plain)
    assert [[len(row) for row in table] for table in tables(card)] == [
        [len(row) for row in table] for table in tables(plain)
    ]
    data, expected = ModelCard(card).data.to_dict(), ModelCard(plain).data.to_dict()
    assert "license" not in data
    assert data.keys() == expected.keys()
    assert data["tags"] == expected["tags"]
    assert data["model-index"][0]["name"] == clean(text)
    assert table_with(card, "ECE (%)")[2][0][0] == f"most accurate source ({clean(text + '2')})"
    assert clean(yaml.safe_load(blocks(card, "yaml")[0])["data"]["test_split"]) == clean(text)


@pytest.mark.parametrize("text", H02)
def test_h02_every_string_of_a_star_is_shown_as_text(text):
    text = text.replace("BEACON", "https://evil.example")
    hostile, plain = with_every_string(full_manifest(), text), with_every_string(full_manifest(), "Plain words")
    card, expected = render(hostile), render(plain)
    assert structure(card) == structure(expected)
    assert clean(text) in clean(" ".join(child for child in words(card)))
    data = ModelCard(card).data.to_dict()
    assert data.keys() == ModelCard(expected).data.to_dict().keys()


def words(card):
    for token in PARSER.parse(ModelCard(card).text):
        yield from ("".join(child.content for child in token.children or () if child.type == "text"),)


def test_h02_no_module_of_a_card_marks_a_text_as_safe():
    folder = Path(starzoo.__file__).parent
    for name in ("report/card", "report/gallery", "report/summary", "star/manifest"):
        names = {
            node.id for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())) if isinstance(node, ast.Name)
        }
        assert not names & {"Markup", "escape"}
    for template in ("star.md.jinja", "gallery.md.jinja"):
        source = (folder.parent / "model_cards" / template).read_text()
        assert not re.search(r"\|\s*(safe|escape|e)\b|autoescape", source)


@pytest.mark.parametrize("texts", [HOSTILE[:6], HOSTILE[6:]])
def test_p04_no_control_byte_reaches_a_file(tmp_path, texts):
    write_card(tmp_path, with_strings("".join(texts)))
    for file in [tmp_path / "README.md", *tmp_path.glob("metrics/*.csv")]:
        content = file.read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", content)
    with (tmp_path / "metrics" / "qualities.csv").open(encoding="utf-8", newline="") as stream:
        assert [len(row) for row in csv.reader(stream)] == [21] * 8


@given(st.text() | st.text(alphabet="\\`*_[]()!|~$@:<>&#;{}.w \n\t'\"-+=0a/"))
def test_escaped_text_is_shown_as_it_is(text):
    cell = f"x{escape(text)}z"
    for document, place in ((f"# {cell}", 0), (f"{cell} and more", 0), (f"| a | b |\n|---|---|\n| {cell} | y |\n", 2)):
        children = [token for token in PARSER.parse(document) if token.type == "inline"][place].children
        assert {child.type for child in children} == {"text"}
        assert "".join(child.content for child in children).removesuffix(" and more") == f"x{clean(text)}z"


def test_the_card_says_in_what_the_models_files_differ():
    from starzoo.data.preprocessing import Preprocessing

    chosen, other = Preprocessing(crop_pct=0.95), Preprocessing(crop_pct=0.875)
    same = [ModelRecord(name=name, dtype="float32", preprocessing=chosen) for name in "ab"]
    architecture = Architecture(name="test_resnet", num_classes=2, preprocessing=chosen, label_names=("cat", "dog"))
    plain = render(make_manifest(architecture=architecture, sources=tuple(same), holdouts=()))
    assert "crop_pct 0.95" not in plain
    assert "by name" not in plain
    odd = ModelRecord(name="c", dtype="bfloat16", preprocessing=other, label_names=("dog", "cat"))
    other_data = {"data_label_names": ("dog", "cat")}
    card = render(make_manifest(architecture=architecture, sources=tuple(same), holdouts=(odd,), **other_data))
    assert r"with interpolation bicubic, crop\_pct 0.95 and crop\_mode center, which 2 of 3 state" in card
    assert "types of the models' files: bfloat16 1, float32 2" in card
    assert "Classes: matched by name; 1 of 3 models had another order" in card
    assert "Classes of the data set: matched by name with those of the models; it has another order" in card


def test_a_license_is_stated_only_if_all_sources_share_it():
    record = ModelRecord(name="a", license="mit")
    other = ModelRecord(name="b", license="cc-by-nc-4.0")
    card = render(make_manifest(sources=(record, other, ModelRecord(name="c", repo="you/c", sha=COMMIT))))
    assert ModelCard(card).data.license is None
    assert "The sources state mit (1), cc-by-nc-4.0 (1), no license (1)" in card
    card = render(make_manifest(sources=(record, other, ModelRecord(name="c"))))  # which is its owner's to license
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert "base_model" not in ModelCard(card).data.to_dict()
    several = [ModelRecord(name=name, license="mit AND apache-2.0") for name in "ab"]
    card = render(make_manifest(sources=several))
    assert ModelCard(card).data.license == "apache-2.0"
    assert "The most restrictive license of the sources is `apache-2.0`" in card


@pytest.mark.usefixtures("real_plots")
def test_p02_nothing_of_the_machine_is_written(tmp_path):
    data = DataConfig(dataset="/home/canary/secret/flowers", test_size=500)
    write_card(tmp_path, make_manifest(config=RunConfig(data=data)))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 8
    for file in files:
        assert not re.search(rb"canary|secret", file.read_bytes())
        assert str(tmp_path).encode() not in file.read_bytes()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "a local folder, flowers" in card
    assert "a class-balanced subset of 500 images of the split 'test'" in card


@pytest.mark.usefixtures("real_plots")
def test_a_rerun_writes_the_same_bytes(tmp_path):
    manifest = make_manifest()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert write_card(tmp_path / folder, manifest, "me/star") == tmp_path / folder / "README.md"
    first, second = (
        {str(file.relative_to(tmp_path / folder)): file.read_bytes() for file in (tmp_path / folder).rglob("*.*")}
        for folder in ("a", "b")
    )
    assert first == second
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", first["README.md"].decode())
    assert sorted(pictures) == ["plots/paths-test.png", "plots/quality-test.png"]
    assert {*pictures, "plots/paths-test.svg", "plots/quality-test.svg", "metrics/paths.csv"} <= first.keys()


def test_metrics_hold_what_was_measured(tmp_path):
    manifest = make_manifest()
    write_card(tmp_path, manifest)
    rows = {}
    for name in ("paths", "curves", "qualities"):
        with (tmp_path / "metrics" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            rows[name] = list(csv.DictReader(stream))
    paths = manifest.evaluation.paths
    assert [float(row["barrier"]) for row in rows["paths"]] == [path.barrier for path in paths]
    assert [float(row["loss"]) for row in rows["curves"]] == [loss for path in paths for loss in path.loss]
    assert [float(row["nll"]) for row in rows["qualities"]] == [row.nll for row in manifest.evaluation.qualities]


def test_a_card_without_evaluation_is_one_file(tmp_path):
    write_card(tmp_path, make_manifest(None))
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_the_configuration_in_the_card_replays_the_run():
    config = RunConfig(data=DataConfig(dataset="me/pictures", test_size=9), star=StarConfig(t=Beta(a=3), mu=0.5))
    card = render(make_manifest(config=config))
    assert RunConfig.model_validate(yaml.safe_load(blocks(card, "yaml")[0])) == config
    _, command = blocks(card, "bash")
    words = command.replace("\\\n", " ").split()
    assert words[:2] == ["starzoo", "fit-star"]
    assert words[2:5] == [f"me/net_{number}@{COMMIT}" for number in range(3)]
    assert words[5:] == ["--holdout", "path/to/m3", "--config", "run.yaml", "--out", "star"]
    assert "t from a Beta(3, 2) distribution; the star's own loss has weight μ = 0.5" in card


def test_snippets_name_the_star():
    for repo, where in ((None, "FOLDER"), ("me/star_1", "me/star_1")):
        timm_code, starzoo_code = blocks(render(make_manifest(), repo), "python")
        ast.parse(timm_code)
        ast.parse(starzoo_code)
        assert f'"{"hf-hub" if repo else "local-dir"}:{where}"' in timm_code
        assert f'starzoo.load_star("{where}")' in starzoo_code


@pytest.mark.parametrize("channels", [1, 3])
def test_the_timm_snippet_runs(tmp_path, monkeypatch, channels):
    import torch
    from PIL import Image

    from starzoo.models.timm_folder import save_timm_folder

    architecture = Architecture(
        name="test_resnet",
        num_classes=3,
        model_args={"in_chans": 1} if channels == 1 else {},
        preprocessing=Preprocessing(input_size=(channels, 32, 32), mean=(0.5,) * channels, std=(0.5,) * channels),
    )
    save_timm_folder(tmp_path / "star", architecture, architecture.build().state_dict())
    Image.new("RGBA", (50, 40), "green").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code = blocks(render(make_manifest(architecture=architecture)), "python")[0].replace("FOLDER", "star")
    names = {}
    exec(code, names)
    assert names["probabilities"].shape == (1, 3)
    assert torch.allclose(names["probabilities"].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("repo", ["star", "me/star\nlicense: mit", 'me/"star', "../star", ""])
def test_a_repository_that_is_none_is_refused(repo):
    with pytest.raises(UsageError, match="not the name of a repository"):
        render(make_manifest(), repo)


def test_a_card_needs_neither_torch_nor_the_network():
    heavy = "('torch', 'huggingface_hub', 'matplotlib', 'numpy')"
    check = f"import sys, starzoo.report.card; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plots_of_a_split_that_is_no_longer_evaluated_are_taken_away(tmp_path):
    both = (make_evaluation(), make_evaluation(split="train"))
    evaluation = Evaluation(paths=both[0].paths + both[1].paths, qualities=both[0].qualities + both[1].qualities)
    write_card(tmp_path, make_manifest(evaluation))
    assert (tmp_path / "plots" / "paths-train.png").is_file()
    write_card(tmp_path, make_manifest(both[0]))
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{plot}-test.{ending}" for plot in ("paths", "quality") for ending in ("png", "svg")
    }


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    for name in ("README.md", "metrics/paths.csv", "plots/paths-test.png", "plots/cost-test.svg"):
        target, link = tmp_path / "mine" / name, tmp_path / "star" / name
        for file in (target, link):
            file.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("mine")
        link.symlink_to(target)
    write_card(tmp_path / "star", make_manifest())
    assert {file.read_text() for file in (tmp_path / "mine").rglob("*.*")} == {"mine"}
    assert not [file for file in (tmp_path / "star").rglob("*") if file.is_symlink()]


@pytest.mark.parametrize("name", ["plots", "metrics"])
def test_a_folder_that_leads_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "paths-test.png").write_text("mine")
    (tmp_path / "star").mkdir()
    (tmp_path / "star" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=f"star/{name}: expected a file in .*, got a link that leads out of it"):
        write_card(tmp_path / "star", make_manifest())
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["paths-test.png"]
    assert (tmp_path / "mine" / "paths-test.png").read_text() == "mine"


def test_figures_of_other_images_are_not_those_of_the_fit():
    plain = make_manifest()
    other = plain.evaluation.model_copy(update={"data": DataConfig(dataset="you/photos", revision=COMMIT)})
    card = render(make_manifest(other))
    assert "All figures are on other images than those of its fit: you/photos" in card
    assert "All figures" not in render(plain)
    [result, *_] = ModelCard(card).data.to_dict()["model-index"][0]["results"]
    assert result["dataset"]["type"] == "you/photos"


def test_the_recipe_says_what_the_fit_did():
    config = RunConfig(data=DataConfig(dataset="me/pictures"), star=StarConfig(epochs=9, patience=1))
    shown = render(make_manifest(config=config, draws=4, history=({"path_loss": 0.5},) * 3))
    assert "Fit: 3 epochs (of 9: it was stopped when the midpoint losses no longer fell)" in shown
    assert "every step takes 4 sources, each with a position t" in shown
    assert "  draws: 4\n" in shown  # a single process makes the same star again
    plain = render(make_manifest(config=config, draws=1, history=({"path_loss": 0.5},) * 9))
    assert "Fit: 9 epochs in batches" in plain
    assert "every step takes one source and one position t" in plain
    assert "draws:" not in plain


def test_whether_validation_images_were_trained_on_is_said():
    plain = make_manifest()
    domain = plain.evaluation.model_copy(
        update={"domain": DomainSampling(t={"low": 0, "high": 0.5}, samples=4, nll=0.5), "validation_images": 20}
    )
    doubt = "whether the models were trained on them is not recorded"
    assert doubt in render(make_manifest(domain))
    known = [model.model_copy(update={"images": DIGEST}) for model in (*plain.sources, *plain.holdouts)]
    assert doubt not in render(make_manifest(domain, sources=known[:3], holdouts=known[3:]))
    assert doubt in render(make_manifest(domain, sources=known[:3]))


def test_h12_a_table_has_no_formula_and_its_numbers_stay_numbers(tmp_path):
    names = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "\u202e=1", "＝1", "plain-name")
    qualities = tuple(make_quality("source", 0.5, name=name) for name in names)
    paths = tuple(make_path("star-source", -0.01, b=name) for name in names)
    write_card(tmp_path, make_manifest(Evaluation(paths=paths, qualities=qualities)))
    for name, column in (("paths", "b"), ("curves", "b"), ("qualities", "name")):
        with (tmp_path / "metrics" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert list(dict.fromkeys(row[column] for row in rows)) == [
            "'=1+1",
            "'+1",
            "'-1",
            "'@SUM(A1)",
            "'=1",
            "'＝1",
            "plain-name",
        ]
        texts = {"kind", "a", "b", "split", "name", "role"}
        [float(value) for row in rows for key, value in row.items() if key not in texts and value]


def test_h12_a_card_that_a_person_wrote_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("# My star")
    with pytest.raises(UsageError, match=r"README\.md: was not written by starzoo"):
        write_card(tmp_path, make_manifest())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("README.md", "# My star")]


def test_h12_tables_of_an_evaluation_before_are_taken_away(tmp_path):
    write_card(tmp_path, make_manifest())
    (tmp_path / "metrics" / "mine.csv").write_text("mine")
    write_card(tmp_path, make_manifest(None))
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["README.md", "mine.csv"]
