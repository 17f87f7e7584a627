from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import IncompatibleError, UntrustedInputError, UsageError
from starzoo.hub.ref import ModelRef
from starzoo.models.class_order import common_label_names, reorder_classes
from starzoo.models.compatibility import check_compatible
from starzoo.models.licenses import read_license
from starzoo.models.sources import load_source, load_sources
from starzoo.models.timm_folder import sha256_file
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub


def test_a_folder_becomes_a_model(make_member: MakeMember) -> None:
    folder = make_member(seed=3)
    source = load_source(folder)
    model = source.model()
    assert isinstance(model, nn.Module)
    assert not model.training
    assert all(torch.equal(source.state[name], tensor) for name, tensor in model.state_dict().items())
    assert (source.name, source.record.dtype) == ("seed-0", "float32")
    assert source.record.files["model.safetensors"] == sha256_file(folder / "model.safetensors")


def test_a_local_path_does_not_get_into_the_record(make_member: MakeMember, tmp_path: Path) -> None:
    record = load_source(make_member()).record
    assert record.name == "seed-0"
    assert (record.repo, record.sha, record.license) == (None, None, None)
    assert str(tmp_path) not in repr(record)


def test_steps_and_images_are_those_of_the_record_beside_a_model(make_member: MakeMember) -> None:
    folder, fingerprint = make_member(), "ab" * 32

    def read(record: object) -> tuple[int | None, str | None]:
        (folder / "training.json").write_text(json.dumps(record))
        record = load_source(folder).record
        return record.steps, record.images

    assert (load_source(folder).record.steps, load_source(folder).record.images) == (None, None)
    whole = {"result": {"steps": 624}, "data": {"fingerprint": fingerprint}}
    rate = {"optimizer": "sgd", "lr": 0.1}
    assert read({**whole, "train": rate}) == (624, fingerprint)
    assert (load_source(folder).record.optimizer, load_source(folder).record.lr) == ("sgd", 0.1)
    assert read({**whole, "train": {"optimizer": "a b", "lr": 1e39}}) == (624, fingerprint)
    assert (load_source(folder).record.optimizer, load_source(folder).record.lr) == (None, None)
    assert read(whole) == (624, fingerprint)
    assert read({**whole, "result": {}}) == (None, fingerprint)
    for steps in (0, -8, 10**19, 6.5, "6", None):
        assert read({**whole, "result": {"steps": steps}}) == (None, fingerprint)
    for strange in ("/home/me", 7, None):
        assert read({**whole, "data": {"fingerprint": strange}}) == (624, None)
    for wrong in ({}, [], {"result": 1, "data": {}}, {"result": {}, "data": ["fingerprint"]}):
        assert read(wrong) == (None, None)


def test_a_repository_becomes_a_model(make_member: MakeMember, fake_hub: FakeHub) -> None:
    files = {path.name: path.read_bytes() for path in make_member().iterdir()}
    sha = fake_hub.commit("ann/net", {**files, "README.md": b"---\nlicense: cc-by-nc-4.0\n---\nhello\n---\n"})
    source = load_source("ann/net@main")
    assert source.name == "net"
    assert (source.record.repo, source.record.sha) == ("ann/net", sha)
    assert source.record.license == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    "card",
    [
        b"no front matter",
        *(
            b"---\n%s\n---\n" % matter
            for matter in (
                b": [",
                b"- a",
                b"license: []",
                b"license: [mit, <script>]",
                b"license: [mit, [mit]]",
                b"license: {a: mit}",
                b"license: &a mit\nname: *a",
                b"a: &a {b: c}\nlicense: mit\n<<: *a",
                b"license: mit\nname: " + b"x" * 70_000,
                b"license: mit\ngated: !!bool maybe",
                b"[" * 3_000,
                b'license: "\\uD800"',
                b"license: mit<script>",
                b"license: %s" % (b"x" * 65),
            )
        ),
    ],
    ids=lambda card: card[4:24],
)
def test_a_card_without_a_license(make_member: MakeMember, card: bytes) -> None:
    folder = make_member()
    (folder / "README.md").write_bytes(card)
    assert load_source(folder).record.license is None


@pytest.mark.parametrize(
    ("card", "license"),
    [
        (b"---\nlicense: mit\n---", "mit"),
        (b"\n  \n---\nlicense: mit\n---\n", "mit"),
        (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
        (b"---\r\nlicense: mit\r\n---\r\n# Title\r\n", "mit"),
        (b"---\rlicense: mit\r---\n", "mit"),
        (b"---\nlicense:\n- mit\n---  \n---\nlicense: apache-2.0\n---\n", "mit"),
        (b"---\nlicense: [mit, Apache-2.0, mit]\n---\n", "mit AND Apache-2.0"),
        (b"---\nauthor: M\xfcller\nlicense: mit\n---\n", "mit"),
        (b"---\nlicense: mit\ndate: 2024-13-45\nsize: 1" + b":1" * 20_000 + b"\n---\n", "mit"),
        (b"---\nlicense: mit\n---\n" + b"text\n" * 500_000, "mit"),
    ],
    ids=["end", "blank lines", "BOM", "CRLF", "CR", "list of one", "list", "Latin-1", "no types", "long"],
)
def test_a_card_is_read_as_the_hub_reads_it(card: bytes, license: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert read_license(tmp_path / "README.md") == license


@pytest.mark.parametrize(
    "matter",
    [
        "license: mit\nsize: 1" + ":1" * 32_000,
        "license: mit\nx: " + "[" * 60_000,
        "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)),
    ],
    ids=["number", "depth", "merges"],
)
def test_no_card_takes_long(matter: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\n")
    began = time.monotonic()
    read_license(tmp_path / "README.md")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w16_half_precision_is_read_and_recorded(make_member: MakeMember, dtype: torch.dtype) -> None:
    folder = make_member()
    path = folder / "model.safetensors"
    stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}
    save_file(stored, path)
    source = load_source(folder)
    assert source.record.dtype == str(dtype).removeprefix("torch.")
    assert {tensor.dtype for tensor in source.state.values()} == {torch.float32, torch.int64}
    assert torch.equal(source.state["fc.weight"], stored["fc.weight"].float())


def test_w14_nan_weights_are_named_and_counted(make_member: MakeMember) -> None:
    folder = make_member()
    change(
        folder,
        "fc.weight",
        lambda weight: weight.flatten().index_fill(0, torch.tensor([1, 5]), torch.nan).view_as(weight),
    )
    with pytest.raises(
        UntrustedInputError, match=r"seed-0: model.safetensors: tensor 'fc.weight' holds NaN or infinity in 2 of"
    ):
        load_source(folder)
    change(folder, "fc.weight", lambda weight: torch.full_like(weight, -torch.inf))
    with pytest.raises(UntrustedInputError, match=r"'fc.weight' holds NaN or infinity in 288 of 288 numbers"):
        load_source(folder)


def test_w17_a_negative_variance_is_refused_and_a_dead_channel_is_not(make_member: MakeMember) -> None:
    folder = make_member()
    change(folder, "bn1.running_var", lambda variance: variance.index_fill(0, torch.tensor([2]), 0.0))
    assert load_source(folder).state["bn1.running_var"][2] == 0
    change(folder, "bn1.running_var", lambda variance: variance.index_fill(0, torch.tensor([2]), -1.0))
    with pytest.raises(UntrustedInputError, match=r"'bn1.running_var' holds negative variances \(1 time\)"):
        load_source(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_c15_a_missing_file_of_a_folder(make_member: MakeMember, file: str) -> None:
    folder = make_member()
    (folder / file).unlink()
    with pytest.raises(UntrustedInputError, match=f"seed-0: has no {file} .*a model in timm format holds"):
        load_source(folder)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("weights.safetensors", "repository"),  # of a folder timm takes it, and so does starzoo
        ("open_clip_model.safetensors", "repository"),
        ("model.onnx", "repository"),
        ("model.onnx", "folder"),
        ("tf_model.h5", "folder"),
    ],
)
def test_c15_weights_under_another_name_are_named(
    name: str, place: str, make_member: MakeMember, fake_hub: FakeHub
) -> None:
    folder = make_member()
    (folder / "model.safetensors").rename(folder / name)
    (folder / "labels.txt").write_text("cat")
    fake_hub.commit("ann/seed-0", {path.name: path.read_bytes() for path in folder.iterdir()})
    where = rf"seed-0: has no model\.safetensors among its files \({re.escape(name)}, config\.json, labels\.txt\)"
    advice = {
        ".safetensors": f"; if {name} holds its weights, put it into a local folder as model.safetensors",
    }.get(Path(name).suffix, ": write them with timm.models.save_for_hf(…, safe_serialization=True)")
    with pytest.raises(UntrustedInputError, match=where) as caught:
        load_source(folder if place == "folder" else "ann/seed-0")
    assert caught.value.hint == f"a model in timm format holds config.json and model.safetensors{advice}"
    assert not fake_hub.asked("/resolve/")


def test_of_many_files_the_largest_are_named(fake_hub: FakeHub) -> None:
    pictures = {f"{number}.png": b"x" * number for number in range(1, 9)}
    fake_hub.commit("ann/clip", {**pictures, "open_clip_config.json": b"{}", "open_clip_model.safetensors": b"x" * 99})
    names = r"\(open_clip_model\.safetensors, 8\.png, 7\.png, 6\.png, 5\.png and 5 more\)"
    with pytest.raises(UntrustedInputError, match=rf"ann/clip: has no config\.json among its files {names}"):
        load_source("ann/clip")


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        load_source(tmp_path / "nowhere")


def test_names_tell_models_apart(make_member: MakeMember, tmp_path: Path) -> None:
    folders = [
        make_member("seed-0", seed=0, parent=tmp_path / "a"),
        make_member("seed-0", seed=1, parent=tmp_path / "b"),
        make_member("seed-1", seed=2, parent=tmp_path / "b"),
    ]
    sources = load_sources(folders)
    assert [source.name for source in sources] == ["seed-0", "seed-0-2", "seed-1"]
    check_compatible(sources)


@pytest.mark.parametrize("name", ["star", "naive mean", "aligned mean"])
def test_a_source_does_not_take_a_name_of_the_evaluation(name: str, make_member: MakeMember, tmp_path: Path) -> None:
    assert load_sources([make_member(name, parent=tmp_path / "theirs")])[0].name == f"{name}-2"


def test_the_same_weights_twice(make_member: MakeMember, tmp_path: Path) -> None:
    first = make_member("first")
    shutil.copytree(first, tmp_path / "second")
    with pytest.raises(UsageError, match="first and second: expected different models"):
        check_compatible(load_sources([first, make_member("other", seed=1), tmp_path / "second"]))
    with pytest.raises(UsageError, match="first and first-2: expected different models"):
        check_compatible(load_sources([first, first]))


GRAY = Preprocessing(input_size=(1, 16, 16), mean=(0.25,), std=(0.5,))
DIFFERENCES = {
    "architecture": (
        {"name": "test_efficientnet", "model_args": {"in_chans": 1}},
        "the architectures are test_resnet and test_efficientnet",
    ),
    "classes": (
        {"num_classes": 4, "label_names": ("cat", "dog", "señor", "fly")},
        "the class counts are 3 and 4",
    ),
    "blocks": ({"model_args": {"in_chans": 1, "layers": [2, 1, 1, 1]}}, "the model arguments are .*1, 1.* and .*2, 1"),
    "size": (
        {"preprocessing": GRAY.model_copy(update={"input_size": (1, 24, 24)})},
        "input_size of the preprocessing is",
    ),
    "mean": ({"preprocessing": GRAY.model_copy(update={"mean": (0.5,)})}, r"mean of the preprocessing is \(0.25,\)"),
}


@pytest.mark.parametrize(("changes", "difference"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_c03_models_that_cannot_be_combined(make_member: MakeMember, changes: dict, difference: str) -> None:
    sources = load_sources([make_member("ours"), make_member("theirs", seed=1, **changes)])
    with pytest.raises(IncompatibleError, match=f"ours and theirs: cannot be combined: {difference}"):
        check_compatible(sources)


def test_unknown_label_names_fit_any(make_member: MakeMember) -> None:
    check_compatible(load_sources([make_member("ours"), make_member("theirs", seed=1, label_names=None)]))


def test_t03_other_classes_are_refused_past_a_model_without_names(make_member: MakeMember) -> None:
    names = [("cat", "dog", "señor"), None, ("cat", "dog", "fly")]
    folders = [make_member(f"m{seed}", seed=seed, label_names=each) for seed, each in enumerate(names)]
    for order in ([0, 1, 2], [1, 0, 2], [1, 2, 0]):
        message = (
            r"m[02]: expected the classes of m[02], got others: 1 missing \((señor|fly)\), 1 unknown \((fly|señor)\)"
        )
        with pytest.raises(IncompatibleError, match=message) as caught:
            check_compatible(load_sources([folders[place] for place in order]))
        assert caught.value.exit_code == 5


def test_t03_classes_are_brought_into_one_order(make_member: MakeMember, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs, unnamed = sources = load_sources([
        make_member("ours"),
        make_member("theirs", seed=1, label_names=("sen\u0303or", "cat", "dog")),
        make_member("unnamed", seed=2, label_names=None),
    ])
    check_compatible(sources)
    found = reorder_classes(sources, common_label_names(sources))
    assert (found[0], found[2]) == (ours, unnamed)
    images = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        before, after = theirs.model()(images), found[1].model()(images)
    torch.testing.assert_close(after, before[:, [1, 2, 0]])
    assert found[1].architecture.label_names == ("cat", "dog", "señor")
    assert found[1].record == theirs.with_record(label_names=("sen\u0303or", "cat", "dog")).record
    assert [record.getMessage() for record in caplog.records] == [
        "classes are matched by name: 1 of 3 models had another order (theirs)"
    ]
    assert reorder_classes(sources, None) == sources


@pytest.mark.parametrize("what", ["input_size", "mean", "std"])
def test_t06_other_preprocessing_is_refused(make_member: MakeMember, what: str) -> None:
    values = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}
    theirs = make_member("theirs", seed=1, preprocessing=GRAY.model_copy(update={what: values[what]}))
    with pytest.raises(IncompatibleError, match=rf"ours and theirs: cannot be combined: {what} of the prep") as caught:
        check_compatible(load_sources([make_member("ours"), theirs]))
    assert (caught.value.exit_code, caught.value.subject) == (5, "ours and theirs")
    assert str(values[what]) in caught.value.message
    assert caught.value.hint


def change(folder: Path, name: str, function: object) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, name: function(state[name])}, folder / "model.safetensors")


def test_a_missing_member_of_a_local_zoo_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").mkdir()
    with pytest.raises(UsageError, match=r"zoo/seed-9: no such folder in zoo \(write hf-hub:zoo/seed-9"):
        load_source("zoo/seed-9")
    assert str(ModelRef.parse("hf-hub:zoo/seed-9")) == "zoo/seed-9"


PICTURES = [{"interpolation": "bilinear", "crop_pct": 0.875}, {"interpolation": "bicubic", "crop_pct": 0.95}]


def test_other_ways_to_cut_a_picture_are_brought_into_one_and_recorded(
    make_member: MakeMember, caplog: pytest.LogCaptureFixture
) -> None:
    own = [GRAY.model_copy(update=PICTURES[index]) for index in (0, 1, 1)]
    folders = [make_member(f"m{seed}", seed=seed, preprocessing=each) for seed, each in enumerate(own)]
    sources = load_sources(folders)
    check_compatible(sources)
    assert {source.architecture.preprocessing for source in sources} == {own[1]}
    assert [source.record.preprocessing for source in sources] == own
    assert "all are evaluated with interpolation bicubic, crop_pct 0.95 and crop_mode center, as 2 of 3" in caplog.text
    check_compatible([load_source(folder) for folder in folders])
    caplog.clear()
    assert {source.architecture.preprocessing for source in load_sources(folders[:2])} == {own[0]}
    assert load_sources(folders[1:])[0].architecture.preprocessing == own[1]
    assert "1 of 2" in caplog.text


def test_a_head_with_another_name_is_refused_with_what_to_rename(make_member: MakeMember) -> None:
    folder = make_member()
    state = load_file(folder / "model.safetensors")
    renamed = {name.replace("fc.", "linear."): tensor for name, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(
        UntrustedInputError, match=r"missing tensors \(2\): fc.* \('linear.weight' looks like 'fc.we"
    ) as e:
        load_source(folder)
    assert e.value.exit_code == 3
