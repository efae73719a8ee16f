"""Deformable convolution as a ladder of switches, down to the form that hardware runs ("CoDeNet", FPGA'21, section 3).

A deformable convolution reads every tap k of its kernel at a place of its own, p_k(y, x) = position relative to the centre,
that a 1x1 convolution of the same input gives (Dai et al. 2017). The switches, each a step of the paper's co-design:
  depthwise  one filter per channel instead of a full convolution
  bound      every position stays within -bound..bound rows and columns, so that hardware keeps 2 bound + 2 rows
  square     one distance d per place, p_k = d * t_k with t_k in {-1, 0, 1}^2: a dilation that varies; 0..bound where bounded
  integer    positions are rounded, with a straight-through gradient, while training too: what is trained is what runs

Every form is `Sample` (a kernel x kernel block of values for every output place, side by side) and an ordinary convolution
whose stride is its kernel. The last form's Sample moves values and computes nothing, so it stays on the grid of a quantized
input, and its distance is an unsigned 3-bit integer (bound 7): the paper's 15-row buffer is wrong at distance 7, 16 rows are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOUND = 7


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, exactly, with the gradient of `x`."""
    return rounded.detach() + (x - x.detach()) if x.requires_grad else rounded


def template(kernel: int) -> Tensor:
    """[kernel * kernel, 2]: (row, column) of each tap relative to the centre, in the order of a weight."""
    axis = torch.arange(kernel) - kernel // 2
    return torch.stack([axis.repeat_interleave(kernel), axis.repeat(kernel)], 1)


def _grid(x: Tensor, taps: Tensor, kernel: int) -> Tensor:
    """taps [N, 2 kernel^2, H, W] -> the grid [N, kernel H, kernel W, 2] that grid_sample takes for x [N, C, H, W]."""
    n, _, h, w = x.shape
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(taps)
    positions = taps.view(n, kernel * kernel, 2, h, w) + places
    size = torch.tensor([h, w], dtype=taps.dtype, device=taps.device).view(2, 1, 1)
    grid = ((2 * positions + 1) / size - 1).flip(2)  # columns first, from -1 to 1 over the outer edges of the pixels
    return grid.view(n, kernel, kernel, 2, h, w).permute(0, 4, 1, 5, 2, 3).reshape(n, kernel * h, kernel * w, 2)


def _read(x: Tensor, taps: Tensor, kernel: int, mode: str) -> Tensor:
    return F.grid_sample(x, _grid(x, taps, kernel), mode=mode, padding_mode="zeros", align_corners=False)


def sample_taps(x: Tensor, taps: Tensor, kernel: int, integer: bool) -> Tensor:
    """x [N, C, H, W] at `taps` [N, 2 kernel^2, H, W], (row, column) of each tap relative to the place -> [N, C, kernel H, kernel W].

    Places outside read 0. Integer taps are read exactly; their gradient is that of bilinear interpolation around the place.
    """
    if not integer:
        return _read(x, taps, kernel, "bilinear")
    exact = _read(x, taps.detach(), kernel, "nearest")
    if not taps.requires_grad:
        return exact
    fixed = x.detach()  # either side of the place: the mean of the two slopes that meet there
    slope = (_read(fixed, taps + 0.25, kernel, "bilinear") + _read(fixed, taps - 0.25, kernel, "bilinear")) / 2
    return exact + (slope - slope.detach())


def square_taps(distance: Tensor, kernel: int) -> Tensor:
    """distance [N, 1, H, W] -> taps [N, 2 kernel^2, H, W]."""
    return distance * template(kernel).to(distance).view(1, -1, 1, 1)


@torch.library.custom_op("deploy::square_sample", mutates_args=())
def square_sample(x: Tensor, distance: Tensor, kernel: int) -> Tensor:
    """x [N, C, H, W] at the integers distance [N, 1, H, W] * template -> [N, C, kernel H, kernel W]; places outside read 0.

    The gradient of a distance is the central difference along each tap's direction, (f(d + 1) - f(d - 1)) / 2.
    """
    return _read(x, square_taps(distance, kernel), kernel, "nearest").contiguous()


@square_sample.register_fake
def _(x: Tensor, distance: Tensor, kernel: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, c, h * kernel, w * kernel)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.kernel = inputs[2]


def _gradients(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, distance = ctx.saved_tensors
    kernel, (n, _, h, w) = ctx.kernel, x.shape
    to_x = to_d = None
    if ctx.needs_input_grad[0]:
        grid = _grid(x, square_taps(distance, kernel), kernel)
        to_x = torch.ops.aten.grid_sampler_2d_backward(given, x, grid, 1, 0, False, [True, False])[0]
    if ctx.needs_input_grad[1]:
        further, nearer = (_read(x, square_taps(distance + s, kernel), kernel, "nearest") for s in (1, -1))
        slope = (given * (further - nearer)).sum(1).view(n, h, kernel, w, kernel).sum((2, 4))
        to_d = slope[:, None] / 2
    return to_x, to_d, None


square_sample.register_autograd(_gradients, setup_context=_keep)


class Distance(nn.Module):
    """The range of what the offset convolution gives: clamped to low..bound (where bounded) and rounded (where integer).

    In a quantized model an activation quantizer of scale 1 takes its place.
    """

    def __init__(self, low: int, bound: int | None, integer: bool) -> None:
        super().__init__()
        self.low, self.bound, self.integer = low, bound, integer

    def forward(self, x: Tensor) -> Tensor:
        if self.bound is not None:
            x = x.clamp(self.low, self.bound)
        return straight_through(x, x.round()) if self.integer else x


class SquareSample(nn.Module):
    """Sample of the square integer form: (x, distance) -> blocks. Moves values only."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        blocks: Tensor = square_sample(x, distance, self.kernel)
        return blocks


class TapSample(nn.Module):
    """Sample of every other form: (x, taps or distance) -> blocks."""

    def __init__(self, kernel: int, square: bool, integer: bool) -> None:
        super().__init__()
        self.kernel, self.square, self.integer = kernel, square, integer

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        taps = square_taps(given, self.kernel) if self.square else given
        return sample_taps(x, taps, self.kernel, self.integer)


LEAVES = (Distance, SquareSample, TapSample)  # single nodes of a graph


class DeformConv2d(nn.Module):
    """Deformable convolution, stride 1, same size: [N, in, H, W] -> [N, out, H, W].

    channels_out must equal channels_in where depthwise. bound: largest distance in pixels, None for none.
    square, integer: see the module's text. Fresh, it is a plain 3x3 convolution: distance 1 everywhere.
    Raises ValueError for a depthwise convolution that changes the number of channels or a kernel that is even.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        *,
        depthwise: bool = True,
        bound: int | None = BOUND,
        square: bool = True,
        integer: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if depthwise and channels_in != channels_out:
            raise ValueError(f"a depthwise convolution keeps its {channels_in} channels, not {channels_out}")
        if kernel % 2 == 0 or kernel < 3:
            raise ValueError(f"kernel {kernel} has no centre with taps around it; use 3, 5, ...")
        self.kernel, self.bound, self.square, self.integer = kernel, bound, square, integer
        self.offset = nn.Conv2d(channels_in, 1 if square else 2 * kernel * kernel, 1)
        self.distance = Distance(0 if square else -(bound or 0), bound, integer)
        hardware = square and integer and bound is not None
        self.sample = SquareSample(kernel) if hardware else TapSample(kernel, square, integer)
        groups = channels_in if depthwise else 1
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=kernel, groups=groups, bias=bias)
        nn.init.zeros_(self.offset.weight)
        with torch.no_grad():
            plain = torch.ones(1) if square else template(kernel).reshape(-1).float()
            self.offset.bias.copy_(plain)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.sample(x, self.distance(self.offset(x))))
        return y

    def reference(self, x: Tensor) -> Tensor:
        """The same through torchvision.ops.deform_conv2d, whose offsets count from the regular grid."""
        from torchvision.ops import deform_conv2d

        taps = self.distance(self.offset(x))
        if self.square:
            taps = square_taps(taps, self.kernel)
        offsets = taps - template(self.kernel).to(taps).view(1, -1, 1, 1)
        return deform_conv2d(x, offsets, self.conv.weight, self.conv.bias, padding=self.kernel // 2)
