"""Optimizers of timm by name."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import list_optimizers, param_groups_weight_decay

from starzoo.config import StarConfig, TrainConfig, validate
from starzoo.errors import UsageError
from starzoo.models.training.optimizer import make_optimizer


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("config", [TrainConfig(), StarConfig()])
def test_sgd_is_that_of_torch_with_nesterov_s_momentum(momentum, config):
    network = timm.create_model("test_resnet")
    optimizer = make_optimizer(network, config.model_copy(update={"momentum": momentum}))
    same = torch.optim.SGD(
        network.parameters(), config.lr, momentum, nesterov=momentum > 0, weight_decay=config.weight_decay
    )
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups == same.param_groups
    plain = make_optimizer(network, config.model_copy(update={"nesterov": False}))
    assert plain.param_groups[0]["nesterov"] is False


def test_adamw_is_that_of_torch():
    network = timm.create_model("test_resnet")
    optimizer = make_optimizer(network, TrainConfig(optimizer="adamw", lr=0.002, weight_decay=0.05))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups == torch.optim.AdamW(network.parameters(), 0.002, weight_decay=0.05).param_groups


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamv", r"optimizer: expected an optimizer of timm, got 'adamv' \(use adam or (\w+|or| )+; `timm\.optim\."),
        ("SGD", "got 'SGD' .use sgd"),
        ("sgd_lookahead", "got 'sgd_lookahead'"),
        ("zzz", r"got 'zzz' \(use sgd or adamw; "),
        ("adahessian", "got 'adahessian'"),
        ("kronw", "got 'kronw'"),
    ],
)
def test_an_unknown_name_is_refused_with_those_close_to_it(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_optimizer(timm.create_model("test_resnet"), TrainConfig(optimizer=name))
    assert caught.value.exit_code == 2


def test_what_is_no_name_at_all_is_refused_with_the_configuration():
    with pytest.raises(UsageError, match=r"configuration optimizer: String should match pattern"):
        validate(TrainConfig, {"optimizer": "os.system('x')"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_an_optimizer_that_needs_a_gpu_is_refused():
    assert "fusedlamb" in list_optimizers()
    with pytest.raises(UsageError, match="optimizer: cannot make fusedlamb: CUDA required"):
        make_optimizer(timm.create_model("test_resnet"), TrainConfig(optimizer="fusedlamb"))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_biases_and_norms_may_go_without_weight_decay_as_in_timm(name):
    network = timm.create_model(name)
    config = StarConfig(filter_bias_and_bn=True, optimizer="adamw", weight_decay=0.05)
    copies = {key: torch.nn.Parameter(value.detach().clone()) for key, value in network.named_parameters()}
    exempt = getattr(network, "no_weight_decay", set)()
    theirs = param_groups_weight_decay(network, 0.05, no_weight_decay_list=exempt)
    for parameters in (None, copies):
        optimizer = make_optimizer(network, config, parameters)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
        names = {id(value): key for key, value in (parameters or dict(network.named_parameters())).items()}
        own = {id(value): key for key, value in network.named_parameters()}
        for group, same in zip(optimizer.param_groups, theirs, strict=True):
            assert [names[id(value)] for value in group["params"]] == [own[id(value)] for value in same["params"]]
