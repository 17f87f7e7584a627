"""Alignment of whole models: same function, closer weights, deterministic."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from starzoo.align.align import Aligner, align
from starzoo.align.features import Features, unit_norm_layers
from starzoo.config import AlignConfig, Method
from starzoo.errors import UsageError
from starzoo.models.weights import average, distance
from starzoo.symmetry import Permutation, infer
from tests.align.networks import example, make, probe_of, spec_of
from tests.symmetry.maximality import networks

NETWORKS = ["residual", "attention"]
METHODS = get_args(Method)
SCALINGS = {"weights": dict, "balanced-weights": unit_norm_layers}
SMALL = networks.NETWORKS | networks.SLOW


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_keeps_the_function_and_changes_the_weights(network: str, method: str) -> None:
    spec = spec_of(network)
    fixed, permutee = make(network, 0), make(network, 1)
    config = AlignConfig(method=method)  # type: ignore[arg-type]
    [aligned] = align(spec, fixed.state_dict(), [permutee.state_dict()], config, probe=probe_of(network))
    permutee, moved = permutee.double(), make(network, 2).double()
    moved.load_state_dict(aligned.permutation.apply(permutee.state_dict()))
    images = torch.randn(7, *example(network).shape[1:], dtype=torch.float64)
    torch.testing.assert_close(moved(images), permutee(images), rtol=1e-9, atol=1e-9)
    assert aligned.permutation.count_moved(Permutation.identity(spec)) > 0
    assert any(not torch.equal(aligned.state[name], permutee.state_dict()[name]) for name in aligned.state)


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_matching_brings_models_closer(network: str) -> None:
    spec = spec_of(network)
    fixed, permutee = make(network, 0).state_dict(), make(network, 1).state_dict()
    [aligned] = align(spec, fixed, [permutee], AlignConfig(method="weights"))
    names = [name for name in spec.axes if spec.is_permuted(name)]
    assert aligned.distance_after < aligned.distance_before
    assert aligned.distance_after == pytest.approx(distance(fixed, aligned.state, names))


@pytest.mark.parametrize("restarts", [1, 4])
def test_is_deterministic_and_independent_of_the_other_permutees(restarts: int) -> None:
    spec, config = spec_of("residual"), AlignConfig(method="weights", restarts=restarts)
    fixed, others = make("residual", 0).state_dict(), [make("residual", seed).state_dict() for seed in (1, 2)]
    together, again = align(spec, fixed, others, config), align(spec, fixed, others, config)
    alone = align(spec, fixed, others[1:], config)
    for one, two in zip(together, [again[0], *alone], strict=True):
        assert one.permutation.count_moved(two.permutation) == 0


def test_restarts_never_end_farther_away() -> None:
    spec = spec_of("residual")
    fixed, permutee = make("residual", 3).state_dict(), make("residual", 4).state_dict()
    [once] = align(spec, fixed, [permutee], AlignConfig(method="weights"))
    [often] = align(spec, fixed, [permutee], AlignConfig(method="weights", restarts=5))
    assert often.distance_after <= once.distance_after
    assert often.sweeps > once.sweeps


@pytest.mark.parametrize("method", SCALINGS)
def test_scaling_commutes_with_permutation(method: str) -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    permutation = Permutation.random(spec, np.random.default_rng(0))
    scale = SCALINGS[method]
    one, two = scale(permutation.apply(state)), permutation.apply(scale(state))
    for name in state:
        torch.testing.assert_close(one[name], two[name])


def test_what_is_zero_stays_zero_in_half_precision() -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float16)
    scaled = unit_norm_layers({"some": weight, "none": torch.zeros(2, 2, dtype=torch.float16)})
    assert scaled["some"].isfinite().all()
    assert scaled["some"][0].any()
    assert not scaled["some"][1].any()
    assert not scaled["none"].any()


def test_scalings_do_what_their_names_say() -> None:
    state = make("residual", 0).state_dict()
    scaled = unit_norm_layers(state)
    assert scaled["conv1.weight"].norm() == pytest.approx(1)
    assert scaled["head.weight"].norm() == pytest.approx(1)
    assert scaled["norm.running_var"].abs().sum() == 0
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in Features(spec_of("residual"), "weights").extract(state).items()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_undoes_a_random_permutation(network: str, method: str) -> None:
    spec, state = spec_of(network), make(network, 0).state_dict()
    copies = [Permutation.random(spec, np.random.default_rng(seed)).apply(state) for seed in range(3)]
    config = AlignConfig(method=method)  # type: ignore[arg-type]
    for aligned in align(spec, state, copies, config, probe=probe_of(network)):
        assert aligned.distance_before > 1
        assert all(torch.equal(aligned.state[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("method", ["balanced-weights", "activations-gradients"])
def test_models_matched_at_once_are_seen_from_the_first(method: str) -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    copies = [Permutation.random(spec, np.random.default_rng(seed)).apply(state) for seed in range(4)]
    aligner = Aligner(spec, AlignConfig(method=method), probe_of("residual"))  # type: ignore[arg-type]
    permutations = aligner.match_all([aligner.features.extract(each) for each in copies])
    assert permutations[0].count_moved(Permutation.identity(spec)) == 0
    for permutation, copy in zip(permutations, copies, strict=True):
        moved = permutation.apply(copy)
        assert all(torch.equal(moved[name], tensor) for name, tensor in copies[0].items())


def test_an_aligner_without_the_probe_that_its_method_needs_is_refused() -> None:
    with pytest.raises(UsageError, match="runs the models on images"):
        Aligner(spec_of("residual"), AlignConfig())


@pytest.mark.parametrize("method", ["activations", "activations-gradients"])
def test_a_method_that_runs_the_models_needs_images(method: str) -> None:
    spec, state = spec_of("residual"), make("residual", 0).state_dict()
    with pytest.raises(UsageError, match=f"alignment by {method}: runs the models on images") as caught:
        align(spec, state, [state], AlignConfig(method=method))  # type: ignore[arg-type]
    assert "name a data set" in caught.value.hint


def test_a_process_without_a_share_has_nothing_to_match() -> None:
    fixed = make("residual", 0)
    aligner = Aligner(infer(fixed, torch.zeros(1, 1, 4, 4)), AlignConfig(method="weights"))
    assert list(aligner.match(fixed.state_dict(), [], [])) == []


def test_average_is_the_mean_and_keeps_counters() -> None:
    a, b = make("residual", 0).state_dict(), make("residual", 1).state_dict()
    mean = average([a, b])
    torch.testing.assert_close(mean["conv1.weight"], (a["conv1.weight"] + b["conv1.weight"]) / 2)
    assert mean["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("network", ["nest", "gcvit", "cpubone", "coat"])
def test_a_planted_permutation_is_undone_where_groups_lie_within_others(network: str) -> None:
    """Heads after their dimensions, heads that are channels, blocks of channels, heads of several kinds."""
    build, pixels = SMALL[network]
    torch.manual_seed(0)
    model = build().eval()
    spec = infer(model, torch.zeros(1, 3, pixels, pixels))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    planted = Permutation.random(spec, np.random.default_rng(0))
    [aligned] = align(spec, state, [planted.apply(state)])
    assert spec.wreath_groups > 0
    assert aligned.distance_before > 1
    assert aligned.distance_after == 0
    assert planted.compose(aligned.permutation).count_moved(Permutation.identity(spec)) == 0
