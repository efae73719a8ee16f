"""Quantized networks to build hardware from: random ones by seed, and the named ones of the FPGA tests and benchmarks.

Weights are random but normalised, BatchNorm (negative slopes too) has the statistics of the data that passes first and is left
unfolded, quantizers take their scale from it too, so that every layer's output varies over its whole range.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.scheme import ActivationSpec, Quantizer, quantized_layer, set_weight_scale
from hw.fpga import ir, reference


class Act(Quantizer):
    """An activation quantizer that takes its scale from the first tensor it sees."""

    def __init__(self, bits: int, signed: bool, spread: float = 0.9) -> None:
        super().__init__(ActivationSpec(bits, signed), ready=False)
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.set_scale(float(x.abs().max()) * self.spread / max(self.spec.high, 1))
        return super().forward(x)


def layer(module: nn.Module, bits: int) -> nn.Module:
    """The Brevitas form of a layer, scales from the largest weight of each output channel."""
    quantized = quantized_layer(module, bits)
    weight = quantized.weight.detach()
    top = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True).clamp(min=1e-6)
    set_weight_scale(quantized, top / ((1 << (bits - 1)) - 1))
    return quantized


def norm(channels: int, rng: random.Random, negative: float = 0.1) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    for c in range(channels):
        bn.weight.data[c] = rng.uniform(0.5, 1.5) * (-1 if rng.random() < negative else 1)
        bn.bias.data[c] = rng.uniform(-0.3, 0.5)
    return bn


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, perhaps ReLU, quantizer."""

    def __init__(self, rng: random.Random, cin: int, cout: int, kernel: int, wb: int, ab: int, *, stride: int = 1,
                 dilation: int = 1, groups: int = 1, signed: bool = False, bias: bool = False, padding: int | None = None) -> None:  # fmt: skip
        super().__init__()
        padding = dilation * (kernel // 2) if padding is None else padding
        self.conv = layer(nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias), wb)
        self.bn = norm(cout, rng)
        self.relu = not signed
        self.act = Act(ab, signed, rng.uniform(0.5, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.act(F.relu(y) if self.relu else y)


class Residual(nn.Module):
    def __init__(self, rng: random.Random, channels: int, wb: int, ab: int) -> None:
        super().__init__()
        self.first = ConvBlock(rng, channels, channels, 3, wb, ab)
        self.second = ConvBlock(rng, channels, channels, 3, wb, 8, signed=True)
        self.act = Act(ab, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.relu(x + self.second(self.first(x))))


class Branches(nn.Module):
    """Two convolutions side by side, concatenated; quantized after the concatenation or before."""

    def __init__(self, rng: random.Random, cin: int, a: int, b: int, wb: int, ab: int) -> None:
        super().__init__()
        self.a = ConvBlock(rng, cin, a, 1, wb, ab)
        self.b = ConvBlock(rng, cin, b, 3, wb, ab, signed=rng.random() < 0.4)
        self.act = Act(ab, self.b.act.spec.signed)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.cat([self.a(x), self.b(x)], 1))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: split, a branch of pointwise, depthwise, pointwise, concatenation, channel shuffle."""

    def __init__(self, rng: random.Random, channels: int, wb: int, ab: int) -> None:
        super().__init__()
        half = channels // 2
        self.half = half
        self.one = ConvBlock(rng, half, half, 1, wb, ab)
        self.two = ConvBlock(rng, half, half, 3, wb, ab, groups=half, signed=True)
        self.three = ConvBlock(rng, half, half, 1, wb, ab)
        self.act = Act(ab, False)

    def forward(self, x: Tensor) -> Tensor:
        keep, work = x[:, : self.half], x[:, self.half :]
        y = self.act(torch.cat([keep, self.three(self.two(self.one(work)))], 1))
        n, c, h, w = y.shape
        return y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class AvgPool(nn.Module):
    def __init__(self, kernel: int, ab: int, signed: bool) -> None:
        super().__init__()
        self.pool, self.act = nn.AvgPool2d(kernel), Act(ab, signed)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pool(x))


class Head(nn.Module):
    """Global mean, quantizer, linear layer; or flatten and linear layer."""

    def __init__(self, channels: int, pixels: int, classes: int, wb: int, ab: int, flatten: bool, signed: bool) -> None:
        super().__init__()
        self.flatten = flatten
        self.act = Act(ab, signed)
        self.fc = layer(nn.Linear(channels * (pixels if flatten else 1), classes), wb)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1) if self.flatten else self.act(x.mean((2, 3)))
        return self.fc(y)


class Net(nn.Module):
    def __init__(
        self, body: list[nn.Module], head: nn.Module | None, shape: tuple[int, int, int], input_signed: bool = False
    ) -> None:
        super().__init__()
        self.input = Act(8, input_signed)
        self.body = nn.ModuleList(body)
        self.head = head
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.body:
            x = block(x)
        return self.head(x) if self.head is not None else x


def ready(net: Net, seed: int = 0) -> Net:
    """Pass data through once, so that every BatchNorm has statistics and every quantizer a scale; the net in eval mode."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.rand(8, *net.shape, generator=generator)
    net.eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for bn in norms:
        bn.momentum = 1.0  # the running statistics are then those of this batch
        bn.train()
    with torch.no_grad():
        net((x - 0.5) * 2 if net.input.spec.signed else x)
    for bn in norms:
        bn.running_var.clamp_(min=1e-3)  # type: ignore[union-attr]
    return net.eval()


def random_network(seed: int, smallest: bool = False) -> Net:
    """A random network of 2 to 5 blocks: convolutions (stride, dilation), separable ones, pooling, residuals, concatenation,
    split and shuffle, upsampling; W2 to W8, A2 to A8, signed and unsigned, odd sizes and channel counts."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = (rng.randint(1, 4), rng.randint(5, 9 if smallest else 14), rng.randint(5, 9 if smallest else 14))
    channels, h, w = shape
    body: list[nn.Module] = []

    def bits() -> tuple[int, int]:
        return rng.randint(2, 8), rng.randint(2, 8)

    signed = False
    for step in range(rng.randint(2, 4 if smallest else 5)):
        kind = rng.choice(["conv", "conv", "separable", "max", "avg", "residual", "concat", "shuffle", "up"])
        wb, ab = bits()
        signed_next = rng.random() < 0.25
        if step == 0:
            kind = rng.choice(["conv", "separable", "concat"])
        if kind in ("max", "avg") and min(h, w) < 4:
            kind = "conv"
        if kind == "shuffle" and (channels < 4 or channels % 2 or signed):
            kind = "conv"
        if kind == "up" and max(h, w) > 12:
            kind = "conv"
        if kind == "residual" and signed:
            kind = "conv"
        if kind == "conv":
            out, kernel = rng.choice([3, 4, 5, 7, 8, 12]), rng.choice([1, 3, 3, 5] if min(h, w) > 5 else [1, 3])
            stride = rng.choice([1, 1, 2]) if min(h, w) > 4 else 1
            dilation = rng.choice([1, 1, 2]) if kernel == 3 and min(h, w) > 5 else 1
            padding = rng.choice([None, None, 0]) if dilation * (kernel - 1) < min(h, w) - 1 else None
            body.append(
                ConvBlock(
                    rng,
                    channels,
                    out,
                    kernel,
                    wb,
                    ab,
                    stride=stride,
                    dilation=dilation,
                    signed=signed_next,
                    bias=rng.random() < 0.5,
                    padding=padding,
                )
            )
            pad = dilation * (kernel // 2) if padding is None else padding
            h, w = ((n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for n in (h, w))
            channels, signed = out, signed_next
        elif kind == "separable":
            out, stride = rng.choice([4, 6, 8, 9]), rng.choice([1, 1, 2])
            body.append(
                ConvBlock(
                    rng,
                    channels,
                    channels,
                    3,
                    max(wb, 3),
                    ab,
                    groups=channels,
                    stride=stride,
                    signed=rng.random() < 0.3,
                )
            )
            body.append(ConvBlock(rng, channels, out, 1, wb, ab, signed=signed_next))
            h, w = ((n - 1) // stride + 1 for n in (h, w))
            channels, signed = out, signed_next
        elif kind == "max":
            kernel, stride = rng.choice([(2, 2), (3, 2), (3, 1)])
            body.append(nn.MaxPool2d(kernel, stride, padding=kernel // 2 if kernel == 3 else 0))
            pad = 1 if kernel == 3 else 0
            h, w = ((n + 2 * pad - kernel) // stride + 1 for n in (h, w))
        elif kind == "avg":
            body.append(AvgPool(2, ab, signed))
            h, w = h // 2, w // 2
        elif kind == "residual":
            body.append(Residual(rng, channels, wb, ab))
        elif kind == "concat":
            a, b = rng.choice([2, 3, 4]), rng.choice([3, 4, 6])
            block = Branches(rng, channels, a, b, wb, ab)
            body.append(block)
            channels, signed = a + b, block.act.spec.signed
        elif kind == "shuffle":
            body.append(ShuffleUnit(rng, channels, wb, ab))
        else:
            body.append(nn.Upsample(scale_factor=2))
            h, w = 2 * h, 2 * w
    wb, ab = bits()
    head = Head(channels, h * w, rng.choice([2, 5, 10]), wb, ab, rng.random() < 0.5 and h * w <= 64, signed)
    return ready(Net(body, head, shape, rng.random() < 0.3), seed)


def mobilenet_v1(seed: int = 0, wb: int = 4, ab: int = 4, signed: bool = False) -> Net:
    """A small MobileNetV1: stem, then depthwise-separable blocks; signed: without ReLU behind the pointwise ones (as in V2)."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    body: list[nn.Module] = [ConvBlock(rng, 3, 8, 3, max(wb, 4), ab, stride=2)]
    channels = 8
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2)):
        body += [
            ConvBlock(rng, channels, channels, 3, wb, ab, groups=channels, stride=stride),
            ConvBlock(rng, channels, out, 1, wb, ab, signed=signed),
        ]
        channels = out
    return ready(Net(body, Head(channels, 1, 10, 8, 8, False, signed), (3, 32, 32)), seed)


class ResidualStack(nn.Module):
    """The residual block of MLPerf Tiny's ResNet-8; a strided pointwise convolution on the short way where the size changes."""

    def __init__(self, rng: random.Random, cin: int, cout: int, stride: int, wb: int, ab: int) -> None:
        super().__init__()
        self.first = ConvBlock(rng, cin, cout, 3, wb, ab, stride=stride)
        self.second = ConvBlock(rng, cout, cout, 3, wb, 8, signed=True)
        self.short = (
            ConvBlock(rng, cin, cout, 1, wb, 8, stride=stride, signed=True)
            if stride != 1 or cin != cout
            else nn.Identity()
        )
        self.act = Act(ab, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.relu(self.short(x) + self.second(self.first(x))))


def resnet8(seed: int = 0, wb: int = 4, ab: int = 8) -> Net:
    """MLPerf Tiny's ResNet-8: 32x32x3, 16-32-64 channels, residual additions, global mean, 10 classes."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    body = [
        ConvBlock(rng, 3, 16, 3, max(wb, 4), ab),
        ResidualStack(rng, 16, 16, 1, wb, ab),
        ResidualStack(rng, 16, 32, 2, wb, ab),
        ResidualStack(rng, 32, 64, 2, wb, ab),
    ]
    return ready(Net(body, Head(64, 1, 10, 8, 8, False, False), (3, 32, 32)), seed)


def shufflenet_v2(seed: int = 0, wb: int = 4, ab: int = 4) -> Net:
    """A stem and two ShuffleNetV2 units."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    body = [
        ConvBlock(rng, 3, 16, 3, max(wb, 4), ab, stride=2),
        ShuffleUnit(rng, 16, wb, ab),
        ShuffleUnit(rng, 16, wb, ab),
    ]
    return ready(Net(body, Head(16, 1, 10, 8, 8, False, False), (3, 16, 16)), seed)


def encoder_decoder(seed: int = 0, wb: int = 4, ab: int = 4) -> Net:
    """Two strided convolutions, two nearest upsamplings with convolutions, an image out."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    body = [
        ConvBlock(rng, 3, 8, 3, max(wb, 4), ab, stride=2), ConvBlock(rng, 8, 16, 3, wb, ab, stride=2), nn.Upsample(scale_factor=2),
        ConvBlock(rng, 16, 8, 3, wb, ab), nn.Upsample(scale_factor=2), ConvBlock(rng, 8, 4, 3, wb, 8, signed=True),
    ]  # fmt: skip
    return ready(Net(body, None, (3, 16, 16)), seed)


class MLP(Net):
    """Linear layers with ReLU on a vector."""

    def __init__(self, rng: random.Random, sizes: list[int], wb: int, ab: int) -> None:
        super().__init__([], None, (sizes[0], 1, 1))
        self.shape = (sizes[0],)  # type: ignore[assignment]
        for a, b in pairwise(sizes[:-1]):
            self.body += [layer(nn.Linear(a, b), wb), nn.ReLU(), Act(ab, False, rng.uniform(0.5, 1.0))]
        self.body.append(layer(nn.Linear(sizes[-2], sizes[-1]), max(wb, 4)))


def mlp(seed: int = 0, wb: int = 2, ab: int = 2) -> Net:
    """A multilayer perceptron: 64-64-48-10."""
    torch.manual_seed(seed)
    return ready(MLP(random.Random(seed), [64, 64, 48, 10], wb, ab), seed)


NAMED: dict[str, Callable[..., Net]] = {
    "mobilenet-v1": mobilenet_v1, "resnet-8": resnet8, "shufflenet-v2": shufflenet_v2, "encoder-decoder": encoder_decoder, "mlp": mlp,
}  # fmt: skip


def one_node(op: ir.Op, *ins: ir.Tensor) -> ir.Graph:
    """A graph of one operation; its inputs come from outside, the result goes out as it is."""
    graph = ir.Graph()
    for i, t in enumerate(ins):
        graph.tensors[f"x{i}"] = t
        graph.inputs.append(
            ir.Input(f"x{i}", f"x{i}", 1.0, (1, t.channels, *t.shape[:2]), np.ones(t.channels), np.zeros(t.channels))
        )
    out = reference.result(op, list(ins))
    graph.tensors["y"] = out
    graph.nodes.append(ir.Node("y", op, tuple(f"x{i}" for i in range(len(ins))), "y", "under test"))
    graph.outputs.append(
        ir.Output("y", "y", np.ones(out.channels), np.zeros(out.channels), np.arange(out.size), (out.size,))
    )
    return graph
