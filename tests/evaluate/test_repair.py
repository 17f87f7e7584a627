"""REPAIR: the channel statistics of a point between two models are those of the ends, mixed as the weights are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn

from starzoo.align.align import align
from starzoo.config import DataConfig, EvalConfig, RunConfig
from starzoo.data.task import load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.evaluator import Evaluator
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.repair import Channels, Moments, _pool, measure_channels, repair
from starzoo.models.training import architecture_for
from starzoo.models.weights import interpolate
from starzoo.symmetry import Permutation, infer
from tests.align.networks import make

NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    "convnext": ("convnext_atto", {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}),
    "efficientnet": ("test_efficientnet", {}),  # batch norms, and squeeze-and-excitation with biases
}


def build(name: str, seed: int) -> nn.Module:
    architecture, arguments = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=5, **arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5 * parameter.abs().mean() * torch.randn_like(parameter))
    return model


def draw_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shapes = (count, 3, 16, 16), (count, 3, 1, 1), (count, 1, 1, 1)
    return sum((torch.randn(shape, generator=generator) for shape in shapes), torch.zeros(()))


def repaired(network: nn.Module, a: dict, b: dict, t: float, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    batches = list(batches)
    return repair(network, a, b, t, [measure_channels(network, end, batches) for end in (a, b)], batches)


def errors(found: Channels, a: Channels, b: Channels, t: float) -> tuple[Tensor, Tensor]:
    """Of every channel of every layer how far mean and deviation are off, in deviations; statistics of one batch."""
    means, stds = [], []
    for name, [now] in found.items():
        [start], [end] = a[name], b[name]
        target = Moments(0, (1 - t) * start.mean + t * end.mean, (1 - t) * start.std + t * end.std)
        means.append((now.mean - target.mean).abs() / target.std)
        stds.append((now.std / target.std - 1).abs())
    return torch.cat(means), torch.cat(stds)


def test_moments_of_uneven_batches_are_those_of_all_values() -> None:
    batches = [torch.full((2, 6), 10.0), torch.arange(36.0).view(2, 18)]
    moments = [Moments(batch.shape[1], batch.mean(1), batch.std(1, correction=0)) for batch in batches]
    pooled, values = _pool(moments), torch.cat(batches, dim=1)
    assert pooled.size == 24
    torch.testing.assert_close(pooled.mean, values.mean(1))
    torch.testing.assert_close(pooled.std, values.std(1, correction=0))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("t", [0.3, 0.5])
def test_statistics_are_those_of_the_ends(name: str, t: float) -> None:
    network, images = build(name, 0), draw_images(120)
    a, b = (dict(build(name, seed).state_dict()) for seed in (0, 1))
    plain, mended = interpolate(a, b, t), repaired(network, a, b, t, [images])
    ends = [measure_channels(network, end, [images]) for end in (a, b)]
    before, after = (errors(measure_channels(network, state, [images]), *ends, t) for state in (plain, mended))
    assert max(before[1]) > 0.2
    assert max(*after[0], *after[1]) < 1e-4


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_several_batches_come_close_to_the_statistics_of_all_images(name: str) -> None:
    network, images = build(name, 0), draw_images(600)
    a, b = (dict(build(name, seed).state_dict()) for seed in (0, 1))
    ends = [measure_channels(network, end, [images]) for end in (a, b)]
    plain, mended = interpolate(a, b, 0.5), repaired(network, a, b, 0.5, images.split(128))
    before, after = (errors(measure_channels(network, state, [images]), *ends, 0.5) for state in (plain, mended))
    for found, left in zip(before, after, strict=True):
        assert left.mean() < min(0.002, found.mean() / 50)
        assert max(left) < 0.02


@pytest.mark.parametrize("name", NETWORKS)
def test_repair_equals_one_layer_after_the_other(name: str) -> None:
    """The slow way: repair the first layer, then measure anew for the second, and so on."""
    network, images, t = build(name, 0), draw_images(40), 0.4
    a, b = (dict(build(name, seed).state_dict()) for seed in (0, 1))
    ends = [measure_channels(network, end, [images]) for end in (a, b)]
    state = interpolate(a, b, t)
    for layer in ends[0]:
        [now], [start], [end] = (found[layer] for found in (measure_channels(network, state, [images]), *ends))
        scale = ((1 - t) * start.std + t * end.std) / now.std
        state[f"{layer}.weight"] = torch.einsum("o,o...->o...", scale, state[f"{layer}.weight"])
        state[f"{layer}.bias"] = scale * (state[f"{layer}.bias"] - now.mean) + (1 - t) * start.mean + t * end.mean
    mended = repaired(network, a, b, t, [images])
    for key, tensor in state.items():
        torch.testing.assert_close(mended[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_ends_are_left_alone(t: float) -> None:
    a, b = (dict(build("vit", seed).state_dict()) for seed in (0, 1))
    mended = repaired(build("vit", 0), a, b, t, [draw_images(20)])
    assert all(torch.equal(tensor, [a, b][int(t)][name]) for name, tensor in mended.items())


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_the_midpoint_of_a_model_and_its_own_permutation_is_the_same_function(name: str) -> None:
    model, images = build(name, 0), draw_images(64)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    spec = infer(model, images[:1])
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    assert not torch.equal(
        shuffled["head.weight" if name == "vit" else "head.fc.weight"], model.get_classifier().weight
    )
    [aligned] = align(spec, state, [shuffled])
    with torch.no_grad():
        before = model(images)
        model.load_state_dict(repaired(model, state, aligned.state, 0.5, images.split(20)))
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)


def test_packed_attention_is_a_linear_layer_and_norms_are_left_alone() -> None:
    a, b = (dict(make("attention", seed).state_dict()) for seed in (0, 1))
    images = torch.randn(50, 5, 4)
    network = make("attention", 0)
    assert list(measure_channels(network, a, [images])) == ["embed", "qkv", "proj", "head"]
    vit = build("vit", 0)
    found = measure_channels(vit, dict(vit.state_dict()), [draw_images(2)])
    assert "blocks.0.attn.qkv" in found
    assert not [name for name in found if "norm" in name or name == "head"]
    mended = repaired(network, a, b, 0.5, [images])
    assert {key: tensor.shape for key, tensor in mended.items()} == {key: tensor.shape for key, tensor in a.items()}


class Odd(nn.Module):
    """Layers that a scale and a shift would break, and one that they would not."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.tied, self.tied_too = (nn.Linear(6, 6) for _ in range(3))
        self.tied_too.weight = self.tied.weight
        self.unused, self.plain, self.free = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.standardised = StdConv2d(3, 6, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.standardised(x).mean((2, 3))))
        return self.plain(self.normed(self.free(self.tied_too(self.tied(x)))))


def test_layers_that_run_twice_share_or_standardise_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    a, b = (dict(Odd().state_dict()) for _ in range(2))
    network, images = Odd(), draw_images(30)
    assert list(measure_channels(network, a, images.split(10))) == ["plain"]
    mended, plain = repaired(network, a, b, 0.5, images.split(10)), interpolate(a, b, 0.5)
    assert {name for name in plain if not torch.equal(plain[name], mended[name])} == {"plain.weight", "plain.bias"}


def test_a_constant_channel_is_shifted_and_not_blown_up() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    a, b = ({"0.weight": torch.eye(2, 3), "0.bias": torch.tensor([value, 0.0])} for value in (2.0, 4.0))
    a["0.weight"], b["0.weight"] = a["0.weight"], -b["0.weight"]  # half-way nothing is left of either channel
    mended = repaired(network, a, b, 0.5, [torch.randn(40, 3)])
    assert mended["0.weight"].abs().max() == 0
    assert mended["0.bias"].isfinite().all()
    network.load_state_dict(mended)
    assert network(torch.zeros(1, 3))[0, 0].item() == pytest.approx(3.0, abs=0.5)


def test_a_curve_is_repaired_between_its_ends_if_asked() -> None:
    a, b = (dict(build("vit", seed).state_dict()) for seed in (0, 1))
    images, labels = draw_images(60), torch.arange(60) % 5

    def curve(**options: bool) -> list[float]:
        splits = {"test": (lambda: images.split(20), labels)}
        return (
            Evaluator(build("vit", 0), splits, lambda: images.split(30), **options).curve(a, b, ts)["test"][0].tolist()
        )

    ts = (0.0, 0.5, 1.0)
    plain, mended = curve(), curve(repairs=True)
    assert (plain[0], plain[2]) == (mended[0], mended[2])
    network = build("vit", 0)
    network.load_state_dict(repaired(network, a, b, 0.5, images.split(30)))
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(network(images), labels))
    assert mended[1] == pytest.approx(expected, abs=1e-5)
    assert abs(plain[1] - mended[1]) > 1e-3


def test_the_classifiers_of_timm_are_left_alone() -> None:
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **size)
    for network, heads in ((distilled, {"head", "head_dist"}), (build("convnext", 0), {"head.fc"})):
        found = set(measure_channels(network, network.state_dict(), [draw_images(4)]))
        assert found
        assert not found & heads
        assert heads < dict(network.named_modules()).keys()


def test_a_whole_evaluation_is_repaired_if_asked() -> None:
    name, arguments = NETWORKS["vit"]
    architecture = architecture_for(name, DataConfig(), model_args={**arguments, "in_chans": 1}, image_size=16)
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(dict(architecture.build().state_dict()))
    pair = EvaluatedModels(architecture=architecture, star=states[0], sources={"other": states[1]})
    data = load_data(DataConfig(test_size=50), architecture.preprocessing)
    configs = [
        EvalConfig(points=3, source_pairs=0, batch_norm_images=100, validation_images=50, repair=repair)
        for repair in (False, True)
    ]
    plain, mended = (evaluate(CachedEvaluation(pair, data, RunConfig(evaluate=config))) for config in configs)
    assert (plain.repaired, mended.repaired) == (False, True)
    [before], [after] = plain.paths, mended.paths
    assert (before.loss[0], before.loss[2]) == (after.loss[0], after.loss[2])
    assert abs(before.loss[1] - after.loss[1]) > 1e-4
    assert plain.qualities == mended.qualities
