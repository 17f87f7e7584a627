"""Small real networks for alignment tests, one per kind of symmetry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starzoo.align.probe import Probe
from starzoo.symmetry import PermutationSpec, infer


class ResidualNet(nn.Module):
    """A residual stream, batch norm, and a convolution that ends in a flattened linear layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.conv2(self.norm1(self.conv1(x)).relu())
        return self.head(x.flatten(1))


class Attention(nn.Module):
    """Packed qkv: heads, and dimensions within every head."""

    def __init__(self, heads: int = 2, dim: int = 3, width: int = 6) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.embed = nn.Linear(4, width)
        self.qkv = nn.Linear(width, 3 * heads * dim)
        self.proj = nn.Linear(heads * dim, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2))
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        attended = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        return self.head((x + self.proj(attended)).mean(1))


def make(network: str, seed: int) -> nn.Module:
    """A network with weights, and batch-norm statistics, that are all different."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = {"residual": ResidualNet, "attention": Attention}[network]()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.abs() + torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor))
    return model.eval()


def example(network: str) -> Tensor:
    return torch.zeros(1, 1, 4, 4) if network == "residual" else torch.zeros(1, 5, 4)


def spec_of(network: str) -> PermutationSpec:
    return infer(make(network, 0), example(network))


def probe_of(network: str, *, images: int = 60, batch: int = 20) -> Probe:
    shape = example(network).shape[1:]
    pixels = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    return Probe(make(network, 99), pixels.split(batch), torch.arange(images) % 3)
