"""Activations as features: what is noted, against autograd and correlations by the book."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from starzoo.align import activation_features
from starzoo.align.activation_features import ActivationFeatures
from starzoo.align.align import align
from starzoo.align.features import Features
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig
from starzoo.errors import IncompatibleError
from starzoo.symmetry import Permutation, infer
from tests.align.networks import example, make, probe_of, spec_of
from tests.symmetry.maximality import networks

SMALL = networks.NETWORKS | networks.SLOW
NETWORKS = ["residual", "attention"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("gradients", [False, True])
def test_responses_move_as_the_weights_do(network: str, gradients: bool) -> None:
    spec, state = spec_of(network), make(network, 0).state_dict()
    seen = ActivationFeatures(spec, probe_of(network), gradients=gradients)
    features = Features(spec, "activations-gradients" if gradients else "activations", probe_of(network))
    permutation = Permutation.random(spec, np.random.default_rng(0))
    moved = Permutation(features.spec, permutation.indices).apply(features.extract(state))
    again = features.extract(permutation.apply(state))
    assert moved.keys() == again.keys() == state.keys() | seen.axes.keys()
    for name in seen.axes:
        torch.testing.assert_close(again[name], moved[name], atol=1e-5, rtol=1e-4)
    assert len(seen.axes) >= (4 if gradients else 2)


def test_the_product_of_two_rows_is_their_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sample large enough for everything, against numpy on activations that a plain hook caught."""
    probe = probe_of("residual", images=40, batch=10)
    monkeypatch.setattr(activation_features, "_SAMPLE", 40 * 16)  # 16 positions an image
    states = [make("residual", seed).state_dict() for seed in (0, 1)]
    seen = [
        ActivationFeatures(spec_of("residual"), probe, gradients=False).extract(state)["conv1()"] for state in states
    ]
    caught = []
    for state in states:
        model = make("residual", 5)
        model.load_state_dict(state)
        outputs: list[Tensor] = []
        model.conv1.register_forward_hook(lambda module, inputs, output, into=outputs: into.append(output))
        with torch.no_grad():
            model(torch.cat(probe.images))
        caught.append(outputs[0].movedim(1, 0).flatten(1).double().numpy())
    expected = np.corrcoef(*caught)[:12, 12:]
    np.testing.assert_allclose((seen[0] @ seen[1].T).numpy(), expected, atol=1e-5)


def test_gradients_are_those_of_autograd() -> None:
    probe = probe_of("residual", images=12, batch=12)
    model = make("residual", 3)
    found = probe.activations(model.state_dict(), probe.images[0], ["conv1"], gradients=True)["conv1"]
    images = probe.images[0]
    hidden = model.conv1(model.norm(model.stem(images)).relu()).detach().requires_grad_()
    x = model.norm(model.stem(images)).relu()
    logits = model.head((x + model.conv2(model.norm1(hidden).relu())).flatten(1))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    torch.testing.assert_close(found[0], hidden.detach())
    torch.testing.assert_close(found[1], hidden.grad)


def test_the_sample_is_the_same_for_every_model_and_grows_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_features, "_SAMPLE", 30)
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    few, many = (ActivationFeatures(spec, probe_of("residual", images=n, batch=20), gradients=False) for n in (40, 60))
    assert {tensor.shape[-1] for tensor in few.extract(state).values()} == {30}
    assert {tensor.shape[-1] for tensor in many.extract(state).values()} == {30}
    assert all(torch.equal(tensor, few.extract(state)[name]) for name, tensor in few.extract(state).items())


def test_the_sample_is_smaller_where_a_network_has_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    probe = probe_of("residual", images=40, batch=20)
    rows = sum(len(tensor) for tensor in ActivationFeatures(spec, probe, gradients=False).extract(state).values())
    monkeypatch.setattr(activation_features, "_MAX_PER_MODEL", 2 * 100 * rows)
    for gradients in (False, True):
        found = ActivationFeatures(spec, probe, gradients=gradients).extract(state)
        assert {tensor.shape[-1] for tensor in found.values()} == {100 if gradients else 200}
        assert sum(tensor.numel() for tensor in found.values()) == 2 * 100 * rows


def test_many_models_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    probe = probe_of("residual", images=40, batch=20)
    rows = sum(len(tensor) for tensor in ActivationFeatures(spec, probe, gradients=False).extract(state).values())
    monkeypatch.setattr(activation_features, "_MAX_TOTAL", 50 * 100 * rows)
    for models, columns in ((1, activation_features._SAMPLE), (25, 200), (50, 100)):
        found = ActivationFeatures(spec, probe, gradients=False, models=models).extract(state)
        assert {tensor.shape[-1] for tensor in found.values()} == {columns}


def test_rows_that_are_rounding_beside_others_say_nothing() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-3], [1e-6]])
    norms = activation_features._standardize(rows).norm(dim=-1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 1.0, 0.0]))


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


class Scale(nn.Module):
    """A module whose result has no axis but the channels'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self) -> Tensor:
        return self.weight.exp()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mask, self.scale, self.down = nn.Linear(4, 6), Mask(), Scale(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x.flatten(1))
        return self.down(x * self.mask(x) * self.scale())


@pytest.mark.parametrize("gradients", [False, True])
def test_masks_are_passed_over_and_a_result_may_be_the_channels_alone(gradients: bool) -> None:
    network = Masked()
    probe = Probe(network, torch.randn(20, 1, 2, 2).split(10), torch.zeros(20, dtype=torch.long))
    spec = infer(network, torch.zeros(1, 1, 2, 2))
    seen = ActivationFeatures(spec, probe, gradients=gradients)
    assert "scale()" in seen.axes
    assert "mask()" not in seen.axes
    assert {len(tensor) for tensor in seen.extract(network.state_dict()).values()} == {6}


def test_a_channel_that_never_responds_is_placed_by_its_weights() -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    for channel in (2, 7):  # dead: batch norm gives a large negative number, and the rectifier nothing
        state["norm1.weight"][channel] = 0
        state["norm1.bias"][channel] = -5
        state["conv1.weight"][channel] *= 0
        state["conv1.weight"][channel, channel % 6] = 1e-9
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    [aligned] = align(spec, state, [shuffled], AlignConfig(method="activations"), probe=probe_of("residual"))
    assert all(torch.equal(aligned.state[name], tensor) for name, tensor in state.items())


class Functional(nn.Module):
    """Hidden units that are in no module's result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.first.T).relu() @ self.second.T


def test_a_group_that_no_module_shows_is_matched_by_its_weights() -> None:
    spec = infer(Functional(), torch.zeros(1, 1, 4, 4))
    state = {name: tensor.detach() for name, tensor in Functional().state_dict().items()}
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    probe = Probe(Functional(), [torch.randn(8, 1, 4, 4)], torch.zeros(8, dtype=torch.int64))
    assert not ActivationFeatures(spec, probe, gradients=True).axes
    [aligned] = align(spec, state, [shuffled], AlignConfig(method="activations-gradients"), probe=probe)
    assert len(spec.groups) == 1
    assert all(torch.equal(aligned.state[name], tensor) for name, tensor in state.items())


class Written(nn.Module):
    """What one module returned is overwritten by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x))).mean((2, 3))


def test_a_result_is_noted_before_it_is_overwritten() -> None:
    model, images = Written().eval(), torch.randn(3, 1, 4, 4)
    expected = model.first(images).detach()
    assert (expected < 0).any()
    probe = Probe(Written(), [images], torch.zeros(3, dtype=torch.int64))
    for gradients in (False, True):
        found = probe.activations(model.state_dict(), images, ["first"], gradients=gradients)["first"]
        torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("network", ["swin", "mixer", "resnext", "beit", "nest", "coat", "vit, registers, layer scale"])
def test_a_planted_permutation_of_a_timm_network_is_undone(network: str) -> None:
    """Windows merged with the batch, groups on two axes of a result, grouped channels, heads."""
    build, pixels = SMALL[network]
    torch.manual_seed(0)
    model = build().eval()
    state = {
        name: tensor + 0.1 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    images = torch.randn(16, 3, pixels, pixels)
    spec = infer(model, images[:1])
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    probe = Probe(build(), images.split(8), torch.zeros(16, dtype=torch.int64))
    [aligned] = align(spec, state, [shuffled], AlignConfig(method="activations-gradients"), probe=probe)
    assert aligned.distance_before > 0.1
    assert aligned.distance_after == 0


def test_a_network_with_other_symmetries_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="other symmetries"):
        ActivationFeatures(spec_of("residual"), probe_of("attention"), gradients=False)


def test_the_loss_half_way_is_that_of_the_mean_with_statistics_of_its_own() -> None:
    probe = probe_of("residual")
    a, b = make("residual", 0), make("residual", 1)
    mean = make("residual", 2)
    mean.load_state_dict({
        name: (tensor + b.state_dict()[name]) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in a.state_dict().items()
    })
    for layer in (mean.norm, mean.norm1):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for images in probe.images:
            mean(images)
        expected = nn.functional.cross_entropy(mean.eval()(torch.cat(probe.images)), probe.labels)
    assert probe.midpoint_loss(a.state_dict(), b.state_dict()) == pytest.approx(float(expected), rel=1e-5)
    assert example("residual").shape[0] == 1


class Caching(nn.Module):
    """Keeps what it derives from a weight until its mode is set, as timm's LeViT does with attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bias = nn.Linear(16, 4), nn.Linear(4, 2), nn.Parameter(torch.randn(4))
        self.cache: Tensor | None = None

    def train(self, mode: bool = True) -> Caching:
        self.cache = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.bias * 2
        return self.second((self.first(x.flatten(1)) + self.cache).relu())


def test_no_model_is_run_with_what_was_cached_of_another() -> None:
    images, labels = torch.randn(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    one, two = Caching().eval(), Caching().eval()
    shared, own = Probe(Caching(), [images], labels), Probe(Caching(), [images], labels)
    shared.activations(one.state_dict(), images, ["second"], gradients=False)
    found = shared.activations(two.state_dict(), images, ["second"], gradients=False)["second"][0]
    torch.testing.assert_close(found, two(images).detach())
    assert shared.loss(two.state_dict()) == pytest.approx(own.loss(two.state_dict()))
