"""What is found holds: on random networks, and on small ones that an adversary thought of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from starzoo.symmetry import infer, verify
from tests.symmetry.test_operators import Network

LARGEST = 96  # numbers per item: beyond that, networks only become slow
SLICE = slice(None)


class Grown(nn.Module):
    """A network that grows by one step at a time; every step reads any of the tensors before it."""

    def __init__(self, draw, *shape):
        super().__init__()
        self.draw, self.steps, self.tensors = draw, [], [torch.ones(2, *shape)]

    def __deepcopy__(self, memo):  # what draws is neither needed in a copy nor can it be copied
        twin = nn.Module.__new__(type(self))
        nn.Module.__init__(twin)
        twin.steps = self.steps
        for name, parameter in self.named_parameters():
            twin.register_parameter(name, memo.get(id(parameter), parameter))
        return twin

    def weight(self, *shape):
        """The name of a parameter: a new one, or one that is there already."""
        same = [name for name, each in self.named_parameters() if each.shape == shape]
        if same and self.draw(st.integers(0, 3)) == 0:
            return self.draw(st.sampled_from(same))
        name = f"weight{len(list(self.parameters()))}"
        self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        return name

    def pick(self, fits=lambda shape: True):
        """The place of a tensor whose shape fits, the last one first; None where there is none."""
        places = [place for place in range(1, len(self.tensors)) if fits(tuple(self.tensors[place].shape))]
        return self.draw(st.sampled_from(places[::-1])) if places else None

    def shape(self, place):
        return tuple(self.tensors[place].shape)

    def axis(self, place):
        return self.draw(st.integers(1, len(self.shape(place)) - 1))

    def grow(self, step):
        """Add a step if its result is neither empty nor large."""
        result = step(self, self.tensors)
        if 0 < result[0].numel() <= LARGEST and 2 <= result.ndim <= 5:
            self.steps.append(step)
            self.tensors.append(result)

    def forward(self, x):
        tensors = [x]
        for step in self.steps:
            tensors.append(step(self, tensors))
        return tensors[-1]


# Each operator makes a step from a random tensor, or None where its shape does not suit.


def linear(net, i):
    """Along the last axis, also with a weight that is used twice or transposed."""
    width = net.shape(i)[-1]
    if net.draw(st.booleans()):
        weight = net.weight(width, net.draw(st.sampled_from([width, 2, 4, 6, 12])))
        return lambda m, t: torch.tanh(t[i]) @ getattr(m, weight)
    weight = net.weight(net.draw(st.sampled_from([width, 2, 4, 6, 12])), width)
    return lambda m, t: functional.linear(t[i], getattr(m, weight))


def mix(net, i):
    """A square weight along any axis, so that it may be added to what it came from."""
    axis = net.axis(i)
    weight, residual = net.weight(*[net.shape(i)[axis]] * 2), net.draw(st.booleans())

    def step(m, t):
        mixed = (t[i].movedim(axis, -1) @ getattr(m, weight)).movedim(-1, axis)
        return t[i] + mixed if residual else mixed

    return step


def convolve(net, i):
    if len(net.shape(i)) != 3:
        return None
    channels = net.shape(i)[1]
    groups = net.draw(st.sampled_from([each for each in range(1, channels + 1) if channels % each == 0]))
    kernel = net.draw(st.sampled_from([1, 3]))
    weight = net.weight(channels, channels // groups, kernel)
    return lambda m, t: functional.conv1d(t[i], getattr(m, weight), padding=kernel // 2, groups=groups)


def attend(net, i):
    """Products of two tensors along their last two axes, with a batch in front."""
    *batch, _, width = net.shape(i)
    j = net.pick(lambda shape: list(shape[:-2]) == batch and width in shape[-2:])
    if len(batch) < 1 or j is None:
        return None
    normalize = net.draw(st.booleans())

    def step(m, t):
        product = torch.tanh(t[i]) @ (t[j].mT if t[j].shape[-1] == width else t[j])
        return product.softmax(-1) if normalize else product

    return step


def pointwise(net, i):
    j = net.pick(lambda shape: shape == net.shape(i))
    function = net.draw(st.sampled_from([torch.add, torch.maximum, lambda x, y: x * torch.sigmoid(y)]))
    return lambda m, t: function(t[i], t[j])


def scale(net, i):
    """A weight with some of the axes, and length 1 along the others."""
    weight = net.weight(*(length if net.draw(st.booleans()) else 1 for length in net.shape(i)[1:]))
    return lambda m, t: t[i] * getattr(m, weight)


def normalize(net, i):
    axis = net.axis(i)
    functions = [torch.softmax, functional.normalize, lambda x, dim: x / (1 + x.square().mean(dim, keepdim=True))]
    function = net.draw(st.sampled_from(functions))
    return lambda m, t: function(t[i], dim=axis)


def reduce(net, i):
    axis, function = net.axis(i), net.draw(st.sampled_from([torch.sum, torch.amax, torch.logsumexp]))
    return lambda m, t: function(t[i], dim=axis)


def unflatten(net, i):
    axis = net.axis(i)
    sizes = [each for each in range(2, net.shape(i)[axis]) if net.shape(i)[axis] % each == 0]
    if not sizes:
        return None
    size = net.draw(st.sampled_from(sizes))
    return lambda m, t: t[i].unflatten(axis, (size, -1))


def flatten(net, i):
    axis = net.axis(i)
    return (lambda m, t: t[i].flatten(axis, axis + 1)) if axis + 1 < len(net.shape(i)) else None


def transpose(net, i):
    first, second = net.axis(i), net.axis(i)
    return lambda m, t: t[i].transpose(first, second)


def part(net, i):
    axis = net.axis(i)
    start = net.draw(st.integers(0, net.shape(i)[axis] - 1))
    where = (*[SLICE] * axis, slice(start, None, net.draw(st.sampled_from([1, 2]))))
    return lambda m, t: t[i][where]


def join(net, i):
    axis = net.axis(i)
    j = net.pick(lambda shape: shape[:axis] + shape[axis + 1 :] == net.shape(i)[:axis] + net.shape(i)[axis + 1 :])
    return lambda m, t: torch.cat([t[i], t[j]], axis)


def expand(net, i):
    axis, times, copy = net.axis(i), net.draw(st.sampled_from([2, 3])), net.draw(st.booleans())
    shape = [-1] * (len(net.shape(i)) + 1)
    shape[axis] = times

    def step(m, t):
        repeated = t[i].unsqueeze(axis).expand(shape)
        return repeated.clone() if copy else repeated

    return step


def write(net, i):
    """Into a copy: a run of positions, every second one, one, or a view of it."""
    axis, j = net.axis(i), net.pick(lambda shape: shape == net.shape(i))
    start = net.draw(st.integers(0, net.shape(i)[axis] - 1))
    index = net.draw(st.sampled_from([start, slice(start, None), slice(start, None, 2), slice(start, start + 1)]))
    where = (*[SLICE] * axis, index)

    def step(m, t):
        written = t[i].clone()
        written[where] = torch.tanh(t[j][where])
        return written

    return step


def pad(net, i):
    axis = net.axis(i)
    return lambda m, t: functional.pad(t[i].movedim(axis, -1), (1, 0)).movedim(-1, axis)


def reduced_weight(net, i):
    """A weight that is seen as blocks, and summed or normalized over them."""
    width = net.shape(i)[-1]
    if width % 2:
        return None
    weight, sums = net.weight(width, width), net.draw(st.booleans())

    def step(m, t):
        blocks = getattr(m, weight).unflatten(0, (2, -1))
        return t[i] @ (blocks.sum(0).mT if sums else blocks.softmax(0).flatten(0, 1))

    return step


def branches(net, i):
    first, second = (net.weight(*[net.shape(i)[-1]] * 2) for _ in range(2))
    return lambda m, t: torch.tanh(t[i] @ getattr(m, first)) + torch.tanh(t[i] @ getattr(m, second))


OPERATORS = [
    *(linear, mix, convolve, attend, pointwise, scale, normalize, reduce, unflatten, flatten, transpose, part, join),
    *(expand, write, pad, reduced_weight, branches),
    *(unflatten, mix, normalize, pointwise),  # most that can go wrong needs blocks
]


@st.composite
def networks(draw):
    """A stem, some random steps, and a head over the last tensor."""
    net = Grown(draw, *draw(st.sampled_from([(4,), (3, 4)])))
    stem = net.weight(draw(st.sampled_from([12, 6, 8])), 4)
    net.grow(lambda m, t: functional.linear(t[0], getattr(m, stem)))
    for operator in draw(st.lists(st.sampled_from(OPERATORS), min_size=2, max_size=9)):
        if (step := operator(net, net.pick())) is not None:
            net.grow(step)
    last = len(net.tensors) - 1
    head = net.weight(net.tensors[last][0].numel(), 2)
    net.grow(lambda m, t: torch.tanh(t[last]).flatten(1) @ getattr(m, head))
    return net


@given(networks())
@settings(deadline=None, derandomize=True, max_examples=400, suppress_health_check=list(HealthCheck))
def test_what_is_found_on_a_random_network_holds(net):
    holds(net, *net.tensors[0].shape[1:])


def holds(model, *shape, **options):
    """Infer the symmetries, and check that they are such; where nothing moves, that is no fault here."""
    spec = infer(model, torch.zeros(1, *shape), **options)
    for seed in range(2):  # an element that is the same in all blocks tells nothing of a wreath product
        result = verify(model, torch.zeros(2, *shape), spec, seed=seed)
        assert result.relative_error <= 1e-7, (result, spec.groups)


# An inner group must not act in each block by itself where something sums over blocks, with the inner axis left.


def heads(step, **layers):
    """Three heads of four dimensions between a stem and a head, as (batch, head, dimension) and back."""
    return Network(
        lambda m, x: m.head(step(m, m.stem(x).unflatten(1, (3, 4))).flatten(1)),
        stem=nn.Linear(4, 12), head=nn.Linear(12, 2), **layers,
    )  # fmt: skip


def over_heads_and_steps(m, x):
    sequences = x.mT.flatten(0, 1).unsqueeze(1)  # (batch · dimension, one step, head)
    return (sequences + m.mix(sequences)[0]).unflatten(0, (len(x), 4)).squeeze(2).mT


ACROSS_BLOCKS = {
    "softmax": heads(lambda m, x: x.softmax(1)),
    "matrix product": heads(lambda m, x: x + torch.einsum("gh,nhd->ngd", m.mix, x), mix=nn.Parameter(torch.ones(3, 3))),
    "batched product": heads(lambda m, x: x + m.mix.expand(len(x), 3, 3) @ x, mix=nn.Parameter(torch.ones(3, 3))),
    "convolution": heads(lambda m, x: x + m.mix(x).relu(), mix=nn.Conv1d(3, 3, 1)),
    "recurrence": heads(over_heads_and_steps, mix=nn.LSTM(3, 3, batch_first=True)),
}


@pytest.mark.parametrize("name", ACROSS_BLOCKS)
def test_what_is_summed_over_blocks_moves_alike_in_each(name):
    holds(ACROSS_BLOCKS[name], 4)


# What is written into one position of a tensor that was constant along an axis


def written_into_a_row(m, x):
    rows = m.stem(x)[:, None].expand(-1, 5, -1).clone()
    rows[:, 0] = torch.tanh(rows[:, 0])
    return m.head((m.scale * rows).sum(1))


def written_into_an_unbound_row(m, x):
    rows = m.stem(x)[:, None].expand(-1, 5, -1).clone()
    rows.unbind(1)[2].zero_()
    return m.head((m.scale * rows).sum(1))


def written_into_a_unit_slice(m, x):
    rows = m.stem(x)[:, None].expand(-1, 5, -1).clone()
    rows[:, :1].mul_(2)
    return m.head((m.scale * rows).sum(1))


@pytest.mark.parametrize("forward", [written_into_a_row, written_into_an_unbound_row, written_into_a_unit_slice])
def test_a_row_of_a_constant_that_was_written_to_is_another_one(forward):
    scale = nn.Parameter(torch.zeros(5, 1))
    holds(Network(forward, stem=nn.Linear(4, 6), scale=scale, head=nn.Linear(6, 2)), 4)


def test_a_view_of_a_result_that_was_there_before_follows_it():
    def forward(m, x):
        result = x.new_empty(len(x), 6)
        view = result.view(-1)
        torch.mm(x, m.stem, out=result)
        return m.head(view.view(len(x), 6))

    holds(Network(forward, stem=nn.Parameter(torch.zeros(4, 6)), head=nn.Linear(6, 2)), 4)


# An output that may be permuted


def test_heads_and_dimensions_on_separate_axes_of_the_output():
    def forward(m, x):
        return m.stem(x).unflatten(1, (3, 4)) * m.gate(x)[..., None]

    holds(Network(forward, stem=nn.Linear(4, 12), gate=nn.Linear(4, 3)), 4, pin_output=False)


def test_heads_of_two_kinds_on_separate_axes_of_the_output():
    def forward(m, x):
        first, second = m.stem(x).unflatten(1, (5, 4)).split([2, 3], 1)
        return torch.cat([first * m.gate(x)[..., None], second], 1)

    holds(Network(forward, stem=nn.Linear(4, 20), gate=nn.Linear(4, 2)), 4, pin_output=False)


# Axes of no position, and no axes


def test_an_empty_part_of_heads_is_followed():
    def forward(m, x):
        x = m.stem(x).unflatten(1, (3, 4))
        both = torch.cat([x, x[:, 3:]], 1)
        return m.head(both.flatten(1)) + x[:, 3:].sum((1, 2))[:, None]

    holds(Network(forward, stem=nn.Linear(4, 12), head=nn.Linear(12, 2)), 4)


def test_a_number_may_be_summed_along_an_axis_that_it_lacks():
    shift = nn.Parameter(torch.ones(()))
    holds(Network(lambda m, x: m.stem(x) + m.shift.cumsum(0), stem=nn.Linear(4, 2), shift=shift), 4)
