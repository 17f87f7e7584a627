"""The star domain: its sources are the right ones, its points are sound models, and their average is the average."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from starzoo.config import DataConfig, RunConfig, Uniform
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import IncompatibleError, NumericalError, UntrustedInputError, UsageError
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.results import DomainSampling, Evaluation
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.sources import load_source
from starzoo.models.weights import interpolate
from starzoo.star.domain import StarDomain
from starzoo.star.run.local_paths import LocalPaths
from starzoo.star.star import Star, load_star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.stars import CONFIG, make_star


@pytest.fixture(scope="module")
def data(digits_zoo: list[Path]) -> ImageTask:
    return load_data(DataConfig(), load_source(digits_zoo[0]).architecture.preprocessing)


@pytest.fixture(scope="module")
def folder(digits_zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_star(tmp_path_factory.mktemp("stars") / "tiny-star", digits_zoo[:3])


@pytest.fixture(scope="module")
def star(folder: Path) -> Star:
    return load_star(folder)


@pytest.fixture
def domain(star: Star) -> StarDomain:
    return star.domain()


@pytest.fixture
def vit(make_member: MakeMember, tmp_path: Path) -> StarDomain:
    """A star domain without batch norm."""
    changes = {
        "name": "test_vit",
        "model_args": {"img_size": 32},
        "preprocessing": Preprocessing(input_size=(3, 32, 32)),
    }
    members = [make_member(f"vit-{seed}", seed=seed, **changes) for seed in range(2)]
    return load_star(make_star(tmp_path / "star", members)).domain()


def reference(star: Star, state: dict[str, Tensor], batches: list[Tensor], images: Tensor) -> Tensor:
    """What a point of the domain says, by the plainest way there is."""
    model = star.manifest.architecture.build()
    model.load_state_dict(state)
    reestimate_batch_norm(model, batches)
    with torch.no_grad():
        return model(images).softmax(1)


# The sources


def test_sources_are_the_same_functions_close_to_the_star(
    domain: StarDomain, star: Star, digits_zoo: list[Path], data: ImageTask
) -> None:
    assert list(domain.sources) == ["seed-0", "seed-1", "seed-2"]
    images = data.test.tensors()[0][:20]

    def distance(state: dict[str, Tensor]) -> float:
        return float((state["layer2.0.conv2.weight"] - star.state["layer2.0.conv2.weight"]).norm())

    for place, state in zip(digits_zoo, domain.sources.values(), strict=False):
        raw, model = load_source(place), star.manifest.architecture.build()
        model.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(model(images), raw.model()(images), rtol=1e-4, atol=1e-4)
        assert distance(state) < 0.9 * distance(dict(raw.state))


def test_folders_of_another_machine_are_given(folder: Path, digits_zoo: list[Path], tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "star")
    (there / "local-paths.json").unlink()
    moved = [shutil.copytree(place, tmp_path / place.name) for place in digits_zoo[:3]]
    star = load_star(there)
    with pytest.raises(UsageError, match="seed-0: was a local folder of another machine"):
        star.domain()
    found, expected = star.domain(moved), load_star(folder).domain()
    for name, state in expected.sources.items():
        assert all(torch.equal(tensor, found.sources[name][key]) for key, tensor in state.items())
    with pytest.raises(UsageError, match=r"has 3 sources, and 2 folders are given .*seed-0, seed-1, seed-2"):
        star.domain(moved[:2])


def test_a_source_that_is_another_file_is_refused(star: Star, digits_zoo: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UntrustedInputError, match="seed-2: its files are not those that the star was made with"):
        star.domain([*digits_zoo[:2], digits_zoo[3]])
    changed = shutil.copytree(digits_zoo[1], tmp_path / "changed")
    state = load_file(changed / "model.safetensors")
    state["fc.bias"][0] += 1e-3
    save_file(state, changed / "model.safetensors")
    with pytest.raises(UntrustedInputError, match="seed-1: its files are not those") as caught:
        star.domain([digits_zoo[0], changed, digits_zoo[2]])
    assert caught.value.exit_code == 3


def test_permutations_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "star")
    file = there / "permutations.safetensors"
    indices = load_file(file)
    key = min(name for name in indices if name.startswith("1/"))
    indices[key][0] = indices[key][1]
    save_file(indices, file)
    with pytest.raises(UntrustedInputError, match="expected a permutation of shape"):
        load_star(there).domain()


def test_sources_of_the_hub_are_pinned(digits_zoo: list[Path], fake_hub: FakeHub, tmp_path: Path) -> None:
    for number, place in enumerate(digits_zoo[:2]):
        fake_hub.commit(
            f"them/member-{number}",
            {name: (place / name).read_bytes() for name in ("config.json", "model.safetensors")},
        )
    there = make_star(tmp_path / "star", ["them/member-0", "them/member-1"])
    (there / "local-paths.json").unlink()
    other = (digits_zoo[3] / "model.safetensors").read_bytes()
    fake_hub.commit("them/member-1", {"model.safetensors": other})  # its main branch has moved on
    found = load_star(there).domain()
    expected = load_star(there).domain(digits_zoo[:2])
    for name in ("member-0", "member-1"):
        assert torch.equal(found.sources[name]["fc.weight"], expected.sources[name]["fc.weight"])


# Points


def test_the_ends_are_the_models_themselves(domain: StarDomain, star: Star) -> None:
    for key, tensor in domain.interpolate("seed-1", 0).items():
        assert torch.equal(tensor, star.state[key])
    for key, tensor in domain.interpolate("seed-1", 1).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, domain.sources["seed-1"][key])


def test_a_point_has_batch_norm_statistics_of_its_own(domain: StarDomain, star: Star, data: ImageTask) -> None:
    batches = list(data.train.images(100, limit=200))
    domain.set_batch_norm_images(iter(batches))  # what can be gone through only once serves as well
    for _ in range(2):
        found = domain.interpolate("seed-1", 0.5)
        stale = interpolate(star.state, domain.sources["seed-1"], 0.5)
        model = star.manifest.architecture.build()
        model.load_state_dict(stale)
        reestimate_batch_norm(model, batches)
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found["bn1.running_var"], stale["bn1.running_var"], rtol=0.01)


def test_stale_statistics_are_never_used(domain: StarDomain, data: ImageTask) -> None:
    images = data.test.tensors()[0][:2]
    for use in (
        lambda: domain.interpolate("seed-1", 0.5),
        lambda: domain.predict(images, samples=2),
        lambda: domain.predict_each(images, samples=1),
    ):
        with pytest.raises(UsageError, match=r"tiny-star: .* there are no images .*domain\.set_batch_norm_images"):
            use()
    for nothing in ([], images[:0], [images[:0]]):
        with pytest.raises(UsageError, match="no image to estimate batch-norm statistics on"):
            domain.set_batch_norm_images(nothing)


def test_places_that_are_not_in_the_domain(domain: StarDomain) -> None:
    with pytest.raises(UsageError, match=r"seed-9: no source of this star .*seed-0, seed-1, seed-2"):
        domain.interpolate("seed-9", 0.5)
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="expected a number from 0 to 1"):
            domain.interpolate("seed-1", t)


def test_points_are_drawn_near_the_star_from_all_sources_alike(domain: StarDomain) -> None:
    points = domain.sample(600, seed=1)
    assert points == domain.sample(600, seed=1)
    assert points[:5] == domain.sample(5, seed=1)
    assert points != domain.sample(600, seed=2)
    places = torch.tensor([point.t for point in points])
    assert 0 <= places.min() < 0.02
    assert 0.48 < places.max() <= 0.5
    assert places.mean() == pytest.approx(0.25, abs=0.02)
    counts = [sum(point.source == name for point in points) for name in domain.sources]
    assert min(counts) > 150
    assert {point.t for point in domain.sample(3, t=Uniform(low=0.9, high=0.9))} == {0.9}
    with pytest.raises(UsageError, match="samples: expected one or more, got 0"):
        domain.sample(0)


def test_points_are_drawn_where_the_evaluation_of_the_star_chose(domain: StarDomain) -> None:
    choice = DomainSampling(t=Uniform(low=0.75, high=0.8), samples=4, nll=0.5)
    evaluation = Evaluation(paths=(), qualities=(), domain=choice)
    manifest = domain.star.manifest.model_copy(update={"evaluation": evaluation})
    chosen = StarDomain(replace(domain.star, manifest=manifest), domain.sources)
    assert all(0.75 <= point.t <= 0.8 for point in chosen.sample(20))
    assert all(point.t <= 0.1 for point in chosen.sample(20, t=Uniform(low=0, high=0.1)))


# Predictions


def test_predictions_are_the_average_over_the_points(domain: StarDomain, star: Star, data: ImageTask) -> None:
    batches, images = list(data.train.images(100, limit=200)), data.test.tensors()[0][:70]
    domain.set_batch_norm_images(batches)
    found = domain.predict(images, samples=3, seed=4)
    assert found.shape == (70, 10)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(70))
    members = [
        reference(star, interpolate(star.state, domain.sources[name], t), batches, images)
        for name, t in domain.sample(3, seed=4)
    ]
    torch.testing.assert_close(
        domain.predict_each(images, samples=3, seed=4), torch.stack(members), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found, torch.stack(members).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(members[0], members[1], atol=1e-3)
    assert not torch.allclose(found, domain.predict(images, samples=3, seed=5), atol=1e-3)


def test_a_data_set_calibrates_as_in_an_evaluation(domain: StarDomain, data: ImageTask) -> None:
    images = data.test.tensors()[0][:5]
    domain.set_batch_norm_images(data)
    found = domain.predict(images, samples=2)
    domain.set_batch_norm_images(list(data.train.images(256, limit=CONFIG.evaluate.batch_norm_images)))
    torch.testing.assert_close(found, domain.predict(images, samples=2))


def test_without_batch_norm_no_image_is_needed(vit: StarDomain) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = vit.predict(images, samples=2, seed=1)
    model, expected = vit.star.manifest.architecture.build(), torch.zeros(3, 3)
    for name, t in vit.sample(2, seed=1):
        model.load_state_dict(interpolate(vit.star.state, vit.sources[name], t))
        with torch.no_grad():
            expected += model(images).softmax(1) / 2
    torch.testing.assert_close(found, expected)


def test_predictions_that_are_no_numbers_are_an_error(vit: StarDomain) -> None:
    with pytest.raises(NumericalError, match="the predictions are not finite"):
        vit.predict(torch.full((1, 3, 32, 32), torch.nan), samples=1)


# Joining


def test_a_held_out_joins_as_it_was_measured(
    star: Star, domain: StarDomain, digits_zoo: list[Path], data: ImageTask
) -> None:
    architecture, held = star.manifest.architecture, load_source(digits_zoo[3])
    sources = {place.name: load_source(place).state for place in digits_zoo[:3]}
    config = CONFIG.evaluate.model_copy(update={"sources": 0, "source_pairs": 0})
    zoo = EvaluatedModels(architecture=architecture, star=star.state, sources=sources, holdouts={"seed-3": held.state})
    measured = evaluate(CachedEvaluation(zoo, data, CONFIG.model_copy(update={"evaluate": config})))
    joined = domain.join(digits_zoo[3], data)
    [path], [expected] = joined.paths, measured.paths_of("star-heldout")
    assert (path.a, path.b, path.kind, path.t) == ("star", "seed-3", "star-heldout", (0, 0.5, 1))
    for measure in ("barrier", "excess", "highest_loss", "worst_accuracy"):
        assert getattr(path, measure) == pytest.approx(getattr(expected, measure), abs=1e-4)
    assert joined.distance_after < joined.distance_before
    assert joined.published_paths == ()
    assert torch.equal(joined.permutation.apply(held.state)["conv1.weight"], joined.state["conv1.weight"])
    # Beside it stand the star's own held-outs, where they were measured on the same images.
    for fingerprint, known in ((data.fingerprint, measured.paths_of("star-heldout")), ("other", ())):
        manifest = star.manifest.model_copy(update={"evaluation": measured, "data_fingerprint": fingerprint})
        assert StarDomain(replace(star, manifest=manifest), {}).join(digits_zoo[3], data).published_paths == known


def test_what_proves_nothing_cannot_join(
    domain: StarDomain, folder: Path, digits_zoo: list[Path], data: ImageTask
) -> None:
    with pytest.raises(UsageError, match=r"seed-1: is its source seed-1, .* would prove nothing"):
        domain.join(digits_zoo[1], data)
    with pytest.raises(UsageError, match="is the star itself"):
        domain.join(folder, data)


def test_another_architecture_cannot_join(domain: StarDomain, make_member: MakeMember, data: ImageTask) -> None:
    other = make_member("other")
    with pytest.raises(
        IncompatibleError, match="the star and other: cannot be combined: the architectures are"
    ) as caught:
        domain.join(other, data)
    assert caught.value.exit_code == 5


def test_a_model_without_label_names_must_beat_chance(
    domain: StarDomain, make_member: MakeMember, digits_zoo: list[Path], data: ImageTask
) -> None:
    architecture = domain.star.manifest.architecture.model_copy(update={"label_names": None})
    blind = make_member("blind", **architecture.model_dump())
    with pytest.raises(IncompatibleError, match=r"blind: is right on .* no better than chance"):
        domain.join(blind, data)


def test_places_of_a_star_are_those_of_its_folder(star: Star, digits_zoo: list[Path]) -> None:
    assert star.local_paths == LocalPaths.from_run([str(place) for place in digits_zoo[:3]], [], RunConfig())
