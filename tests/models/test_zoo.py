"""Zoos: members share nothing, finished ones are kept, and nothing half done stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from starzoo.config import DataConfig, TrainConfig, validate
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import IncompatibleError, NumericalError, UntrustedInputError, UsageError
from starzoo.models.architecture import Architecture
from starzoo.models.sources import load_source
from starzoo.models.timm_folder import load_state, read_architecture
from starzoo.models.training import architecture_for, train_member, train_zoo
from starzoo.models.training.member import measure

DATA = DataConfig(train_size=200, test_size=100)
RECIPE = TrainConfig(epochs=2, batch_size=50, lr=0.05)
ARCHITECTURE = Architecture(
    name="resnet18",
    num_classes=10,
    model_args={"layers": [1, 1, 0, 0], "channels": [8, 16, 16, 16], "zero_init_last": False, "in_chans": 1},
    preprocessing=Preprocessing(input_size=(1, 16, 16), mean=(0.3,), std=(0.35,)),
    label_names=tuple("0123456789"),
)


@pytest.fixture(scope="module")
def data() -> ImageTask:
    return load_data(DATA, ARCHITECTURE.preprocessing)


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# One member


def test_member_learns(data: ImageTask) -> None:
    losses = []
    state = train_member(
        ARCHITECTURE,
        data,
        TrainConfig(epochs=12, batch_size=25, lr=0.1),
        seed=3,
        progress=lambda stage, done, total, **figures: losses.append((stage, done, total, figures["loss"])),
    )
    assert [entry[:3] for entry in losses] == [("training seed 3", epoch, 12) for epoch in range(1, 13)]
    assert losses[-1][3] < 0.3 * losses[0][3]
    model = ARCHITECTURE.build()
    model.load_state_dict(state)
    loss, accuracy = measure(model, data.test)
    assert accuracy > 0.7
    assert loss < 1.2


def test_t04_members_have_the_class_order_of_their_architecture(tmp_path: Path) -> None:
    names = tuple("7891234560")
    architecture = ARCHITECTURE.model_copy(update={"label_names": names})
    [member] = train_zoo(architecture, DATA, TrainConfig(epochs=12, batch_size=25, lr=0.1), [0], tmp_path, jobs=1)
    source = load_source(member.folder)
    assert source.architecture.label_names == names
    data = load_data(DATA, ARCHITECTURE.preprocessing, class_names=names)
    assert measure(source.model(), data.test) == pytest.approx((member.test_loss, member.test_accuracy), rel=1e-3)
    assert member.test_accuracy > 0.7


def test_member_depends_on_its_seed_alone(data: ImageTask) -> None:
    config = TrainConfig(epochs=1, batch_size=50)
    flipped = load_data(DataConfig(train_size=200, test_size=100, augment="flip"), ARCHITECTURE.preprocessing)
    torch.manual_seed(0)
    first = train_member(ARCHITECTURE, data, config, seed=0)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert equal(first, train_member(ARCHITECTURE, data, config, seed=0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not equal(first, train_member(ARCHITECTURE, data, config, seed=1))
    assert not equal(first, train_member(ARCHITECTURE, flipped, config, seed=0))


def test_members_share_neither_start_nor_order(data: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate too small to move, weights are the initial ones; and the loaders are asked for different seeds."""
    asked = []
    loader = type(data.train).loader

    def spy(self, *args, **options):
        asked.append(options["seed"])
        return loader(self, *args, **options)

    monkeypatch.setattr(type(data.train), "loader", spy)
    still = TrainConfig(epochs=1, batch_size=50, lr=1e-12, weight_decay=0)
    first, second = (train_member(ARCHITECTURE, data, still, seed=seed)["conv1.weight"] for seed in (0, 1))
    assert len(set(asked)) == 2
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    assert abs(float(cosine)) < 0.3


def test_training_matches_plain_pytorch(data: ImageTask) -> None:
    """The same steps with PyTorch's own optimizer and scheduler, written down plainly."""
    config = TrainConfig(epochs=2, batch_size=50, lr=0.05, warmup=0)
    start, order = (int(number) for number in np.random.SeedSequence(7).generate_state(2))
    torch.manual_seed(start)
    model = ARCHITECTURE.build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    for epoch in range(2):
        for images, labels in data.train.loader(50, epoch=epoch, seed=order):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
    state = train_member(ARCHITECTURE, data, config, seed=7)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb", "muon"])
def test_a_member_is_reproducible_with_any_optimizer(optimizer: str, data: ImageTask) -> None:
    config = TrainConfig(epochs=1, batch_size=50, optimizer=optimizer, lr=0.01)
    first = train_member(ARCHITECTURE, data, config, seed=5)
    assert equal(first, train_member(ARCHITECTURE, data, config, seed=5))
    bare = train_member(ARCHITECTURE, data, config.model_copy(update={"filter_bias_and_bn": True}), seed=5)
    assert not equal(first, bare)


def test_a_member_may_learn_mixed_images_and_end_with_an_average(data: ImageTask) -> None:
    def train(**options: object) -> dict[str, Tensor]:
        config = TrainConfig(epochs=1, batch_size=64, **options)  # type: ignore[arg-type]
        return train_member(ARCHITECTURE, data, config, 0)

    mixed = {"mixup": 0.4, "cutmix": 1.0, "bce": True}
    plain, last, average = train(**mixed), train(**mixed, ema_decay=0.0), train(**mixed, ema_decay=0.9)
    assert equal(plain, last)
    assert not equal(plain, average)
    assert not equal(plain, train())


def test_the_first_half_of_the_epochs_may_see_small_images(data: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    build = Architecture.build

    def spy(architecture: Architecture) -> torch.nn.Module:
        model = build(architecture)
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[1:])))
        return model

    monkeypatch.setattr(Architecture, "build", spy)
    config = TrainConfig(epochs=3, batch_size=100, small_size=12)
    first = train_member(ARCHITECTURE, data, config, seed=0)
    assert sizes == [(1, 12, 12)] * 2 + [(1, 16, 16)] * 4
    assert equal(first, train_member(ARCHITECTURE, data, config, seed=0))


def test_divergence_names_seed_and_epoch(data: ImageTask) -> None:
    wild = TrainConfig(epochs=3, batch_size=50, lr=1e30, warmup=0)
    with pytest.raises(NumericalError, match=r"seed 4: the loss is (nan|inf) in epoch 1") as caught:
        train_member(ARCHITECTURE, data, wild, seed=4)
    assert caught.value.exit_code == 6


# Zoos


@pytest.mark.usefixtures("prepared_workers")
def test_zoo_is_made_of_folders_that_plain_timm_loads(tmp_path: Path, data: ImageTask) -> None:
    seen = []
    reports = train_zoo(
        ARCHITECTURE,
        DATA,
        RECIPE,
        [2, 0, 1],
        tmp_path / "zoo",
        jobs=2,
        progress=lambda stage, done, total, **figures: seen.append((stage, done, total, *figures)),
    )
    assert seen == [("training the zoo", done, 6, "loss") for done in range(1, 7)]
    assert [report.folder.name for report in reports] == ["seed-2", "seed-0", "seed-1"]
    names = ("config.json", "model.safetensors", "training.json")
    assert visible(tmp_path / "zoo") == [f"seed-{seed}/{name}" for seed in range(3) for name in names]
    for report in reports:
        assert report.trained
        assert read_architecture(report.folder) == ARCHITECTURE
        state = load_state(report.folder, ARCHITECTURE)
        torch.set_num_threads(1)
        assert equal(state, train_member(ARCHITECTURE, data, RECIPE, report.seed, device="cpu"))
        model = timm.create_model(f"local-dir:{report.folder}", pretrained=True).eval()
        loss, accuracy = measure(model, data.test)
        assert report.test_accuracy == pytest.approx(accuracy)
        assert report.test_loss == pytest.approx(loss, rel=1e-5)
    record = json.loads((tmp_path / "zoo/seed-1/training.json").read_text())
    assert record["seed"] == 1
    assert record["train"]["epochs"] == 2
    assert record["data"]["fingerprint"] == data.fingerprint
    assert record["result"]["train_accuracy"] == reports[2].train_accuracy
    steps = 2 * len(data.train.loader(RECIPE.batch_size, epoch=0, seed=0))
    assert load_source(tmp_path / "zoo" / "seed-1").record.steps == record["result"]["steps"] == steps
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_finished_members_are_kept_and_new_ones_added(tmp_path: Path) -> None:
    [first] = train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    seen = []
    again, second = train_zoo(
        ARCHITECTURE, DATA, RECIPE, [0, 1], tmp_path, progress=lambda *args, **_: seen.append(args)
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (again.trained, second.trained) == (False, True)
    assert (again.test_loss, again.seconds) == (first.test_loss, first.seconds)
    assert seen == [("training the zoo", 1, 2), ("training the zoo", 2, 2)]


def test_a_member_that_has_learnt_nothing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    assert not caplog.messages
    still = RECIPE.model_copy(update={"lr": 1e-9})
    train_zoo(ARCHITECTURE, DATA, still, [0], tmp_path / "still")
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path / 'still' / 'seed-0'}: no better than chance, ")
    assert message.endswith(" % of its own training images; lower train.lr")


def test_a_member_from_before_an_option_is_kept(tmp_path: Path) -> None:
    train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    path = tmp_path / "seed-0/training.json"
    record = json.loads(path.read_text())
    del record["train"]["small_size"]
    path.write_text(json.dumps(record))
    [kept] = train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    assert not kept.trained
    with pytest.raises(UsageError, match=r"seed-0: was made otherwise: train\.small_size was null, now 12"):
        train_zoo(ARCHITECTURE, DATA, RECIPE.model_copy(update={"small_size": 12}), [0], tmp_path)


def test_the_transform_of_a_member_and_the_versions_behind_it_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path / "plain")
    assert "transform" not in json.loads((tmp_path / "plain/seed-0/training.json").read_text())["data"]
    transformed = validate(DataConfig, {**DATA.model_dump(), "augment": "timm"})
    [first] = train_zoo(ARCHITECTURE, transformed, RECIPE, [0], tmp_path)
    monkeypatch.setattr("starzoo.data.loader._count_workers", lambda wanted: 0)
    [again] = train_zoo(ARCHITECTURE, transformed, RECIPE, [0], tmp_path / "again")
    weights = [(member.folder / "model.safetensors").read_bytes() for member in (first, again)]
    assert weights[0] == weights[1] != (tmp_path / "plain/seed-0/model.safetensors").read_bytes()
    monkeypatch.setattr("starzoo.data.augmentation.version", lambda package: f"{package} 9")
    with pytest.raises(UsageError, match=r'otherwise: data\.transform\.versions\.pillow was .*, now "pillow 9"'):
        train_zoo(ARCHITECTURE, transformed, RECIPE, [0], tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("test_vit", {"small_size": 12}, "train.small_size: test_vit takes images of one size"),
        ("test_resnet", {"optimizer": "lamp"}, "optimizer: expected an optimizer of timm, got 'lamp' .use lamb"),
    ],
)
def test_options_that_no_member_can_have_are_refused_before_any(
    name: str, changes: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train_zoo(Architecture.from_registry(name), DATA, RECIPE.model_copy(update=changes), [0], tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": TrainConfig(epochs=3, batch_size=50, lr=0.05)},
            "seed-0: was made otherwise: train.epochs was 2, now 3",
        ),
        ({"data": DataConfig(train_size=201, test_size=100)}, "data.train_size was 200, now 201"),
        (
            {"architecture": ARCHITECTURE.model_copy(update={"model_args": {"in_chans": 1}})},
            r"architecture\.model_args\.layers was \[1, 1, 0, 0\], now null",
        ),
    ],
)
def test_other_configuration_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    before = visible(tmp_path)
    arguments = {"architecture": ARCHITECTURE, "data": DATA, "train": RECIPE} | changes
    with pytest.raises(UsageError, match=message) as caught:
        train_zoo(*arguments.values(), [1, 0], tmp_path)
    assert caught.value.exit_code == 2
    assert visible(tmp_path) == before


def test_changed_data_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(4):
                image = Image.new("L", (16, 16), 100 * number + index + 50 * (split == "test"))
                image.save(tmp_path / "images" / split / name / f"{index}.png")
    config, recipe = DataConfig(dataset=str(tmp_path / "images")), TrainConfig(epochs=1, batch_size=4)
    architecture = architecture_for("test_resnet", config)
    train_zoo(architecture, config, recipe, [0], tmp_path / "zoo")
    beside = DataConfig(dataset=f"{tmp_path}/zoo/../images")  # the same images, by another way
    [kept] = train_zoo(architecture, beside, recipe, [0], tmp_path / "zoo")
    assert not kept.trained
    Image.new("L", (16, 16), 250).save(tmp_path / "images/train/a/0.png")
    with pytest.raises(UsageError, match=r"seed-0: was made otherwise: data\.fingerprint was"):
        train_zoo(architecture, config, recipe, [0], tmp_path / "zoo")


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(UsageError, match=r"seed-0: is no finished member: it has no training\.json"):
        train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path)
    train_zoo(ARCHITECTURE, DATA, RECIPE, [1], tmp_path)
    record = json.loads((tmp_path / "seed-1/training.json").read_text())
    del record["result"]["test_loss"]
    (tmp_path / "seed-1/training.json").write_text(json.dumps(record))
    with pytest.raises(UntrustedInputError, match=r"training\.json: was not written by starzoo"):
        train_zoo(ARCHITECTURE, DATA, RECIPE, [1], tmp_path)


@pytest.mark.parametrize("seeds", [[0, 0], [-1]])
def test_bad_seeds(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(UsageError, match="seeds: must be different numbers from 0 on"):
        train_zoo(ARCHITECTURE, DATA, RECIPE, seeds, tmp_path)


def test_other_classes_are_refused_before_training(tmp_path: Path) -> None:
    architecture = ARCHITECTURE.model_copy(update={"label_names": tuple("A123456789")})
    with pytest.raises(IncompatibleError, match=r"digits: .* got others: 1 missing \(A\), 1 unknown \(0\)"):
        train_zoo(architecture, DATA, RECIPE, [0], tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_another_number_of_classes_is_refused_before_training(tmp_path: Path) -> None:
    architecture = ARCHITECTURE.model_copy(update={"label_names": None, "num_classes": 7})
    with pytest.raises(IncompatibleError, match="digits: expected the 7 classes of the models, got 10"):
        train_zoo(architecture, DATA, RECIPE, [0], tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "zoo").write_text("")
    with pytest.raises(UsageError, match="zoo: cannot be written: File exists"):
        train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path / "zoo")


def test_failing_member_stops_the_zoo_and_leaves_nothing(tmp_path: Path) -> None:
    wild = TrainConfig(epochs=50, batch_size=50, lr=1e30, warmup=0)
    with pytest.raises(NumericalError, match=r"seed 0: the loss is (nan|inf) in epoch 1"):
        train_zoo(ARCHITECTURE, DATA, wild, [0, 1], tmp_path / "zoo", jobs=1)
    assert not (tmp_path / "zoo").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(NumericalError, match=r"seed 0: the loss is (nan|inf) in epoch 1"):
        train_zoo(ARCHITECTURE, DATA, wild, [0], tmp_path / "mine", jobs=1)
    assert list((tmp_path / "mine").iterdir()) == []


# Architectures


def test_architecture_takes_everything_from_the_data() -> None:
    architecture = architecture_for("resnet18", DataConfig(), model_args={"layers": [1, 1, 0, 0]}, image_size=16)
    assert architecture.model_args == {"layers": [1, 1, 0, 0], "in_chans": 1}
    assert architecture.num_classes == 10
    assert architecture.label_names == tuple("0123456789")
    assert architecture.preprocessing.input_size == (1, 16, 16)
    images, _ = load_data(DataConfig(), architecture.preprocessing).train.tensors()
    assert float(images.mean()) == pytest.approx(0, abs=1e-3)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    assert architecture == Architecture.from_config(architecture.config(), "again")


def test_architecture_of_color_images_and_a_fixed_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, color in (("red", (200, 0, 7)), ("green", (0, 100, 7))):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), color).save(tmp_path / split / name / "0.png")
    config = DataConfig(dataset=str(tmp_path))
    architecture = architecture_for("test_vit", config)
    assert architecture.model_args == {"img_size": [32, 32]}
    assert architecture.preprocessing.input_size == (3, 32, 32)
    assert architecture.preprocessing.mean == pytest.approx((100 / 255, 50 / 255, 7 / 255), abs=1e-4)
    assert architecture.preprocessing.std[2] == 1.0
    assert architecture == Architecture.from_config(architecture.config(), "again")
    Image.new("RGB", (33, 32)).save(tmp_path / "train" / "red" / "1.png")
    with pytest.raises(UsageError, match="its images differ in size"):
        architecture_for("test_resnet", config)
    assert architecture_for("test_resnet", config, image_size=24).preprocessing.input_size == (3, 24, 24)


@pytest.mark.parametrize("name", ["resnet1800", "/etc/passwd"])
def test_unknown_architecture(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: timm does not know this architecture"):
        architecture_for(name, DataConfig())


def test_a_tag_and_a_deprecated_name_are_an_architecture() -> None:
    assert architecture_for("resnet18.a1_in1k", DataConfig(), image_size=16).name == "resnet18"
    assert architecture_for("tv_resnet34", DataConfig(), image_size=16).name == "resnet34"


def test_the_first_class_does_not_speak_for_all(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, mode in (("a-gray", "L"), ("b-red", "RGB")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(40):
                Image.new(mode, (16, 16), number if mode == "L" else (200, number, 7)).save(
                    tmp_path / split / name / f"{number}.png"
                )
    assert architecture_for("test_resnet", DataConfig(dataset=str(tmp_path))).preprocessing.input_size == (3, 16, 16)


def test_a_member_that_another_run_has_made_meanwhile_is_taken(tmp_path: Path) -> None:
    [first] = train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path / "one")

    def be_overtaken(stage: str, done: int, total: int, **_: float) -> None:
        if not (tmp_path / "two" / "seed-0").exists():
            shutil.copytree(first.folder, tmp_path / "two" / "seed-0")

    [found] = train_zoo(ARCHITECTURE, DATA, RECIPE, [0], tmp_path / "two", progress=be_overtaken)
    assert (found.trained, found.seconds, found.folder) == (False, first.seconds, tmp_path / "two" / "seed-0")


def test_refused_arguments() -> None:
    with pytest.raises(UsageError, match="resnet18: in_chans='x' is no number of channels"):
        architecture_for("resnet18", DataConfig(), model_args={"in_chans": "x"})
    with pytest.raises(UsageError, match="resnet18: num_classes is that of digits, 10"):
        architecture_for("resnet18", DataConfig(dataset="digits"), model_args={"num_classes": 3}, image_size=16)
    same = architecture_for("resnet18", DataConfig(dataset="digits"), model_args={"num_classes": 10}, image_size=16)
    assert (same.num_classes, same.model_args) == (10, {"in_chans": 1})
    with pytest.raises(UsageError, match="resnet18: in_chans=0 is no number of channels"):
        Architecture.from_registry("resnet18", model_args={"in_chans": 0})
    with pytest.raises(UsageError, match="resnet18: num_classes='x' is no number of classes"):
        Architecture.from_registry("resnet18", model_args={"num_classes": "x"})
    seven = Architecture.from_registry("test_resnet", model_args={"num_classes": 7})
    assert (seven.num_classes, dict(seven.model_args)) == (7, {})
    with pytest.raises(UsageError, match="resnet18: timm cannot build it with"):
        architecture_for("resnet18", DataConfig(), model_args={"depth": 3})


def test_an_argument_that_could_not_be_read_again_is_refused_before_training() -> None:
    message = r"model_args\.stem_width has the value 70000, so that starzoo could not load the members"
    with pytest.raises(UsageError, match=message):
        architecture_for("resnet18", DataConfig(), model_args={"stem_width": 70_000}, image_size=32)
