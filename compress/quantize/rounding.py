"""Second-order weight rounding of one layer from the inputs that it really gets.

With X the layer's inputs in the float model and Xq those in the quantized model so far, per group, H = E[Xq Xq'], G = E[X Xq']:
1. Target: W* = W (G + l I) (H + l I)^-1, the least-squares weight that maps Xq to W X (input-error compensation, as in
   Li et al., GPTAQ, 2025, section 3), l a small multiple of the mean diagonal.
2. Columns are rounded one by one in the order of falling H_ii, each error spread over the columns not yet rounded through the
   Cholesky factor of H^-1 (Frantar et al., GPTQ, 2023, section 3; Hassibi & Stork 1993).
3. The mean output error that is left goes into the bias (Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS = 16384
_BLOCK = 128


def patches(layer: Any, x: Tensor, chosen: Tensor) -> Tensor:
    """Input columns [groups, Cin/groups * taps, P] of a Conv1d/2d or Linear at flat output positions `chosen` [P].

    x: the layer's input, batch first. A position counts over batch and output pixels in row-major order.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[chosen].t()[None]
    if isinstance(layer, nn.Conv1d):
        x = x[:, :, None]
        kernel, stride, dilation = (1, *layer.kernel_size), (1, *layer.stride), (1, *layer.dilation)
    else:
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    pad = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros":
        x = F.pad(x, pad)
    else:
        x = F.pad(x, pad, mode=layer.padding_mode)
    height = (x.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    n, rest = chosen // (height * width), chosen % (height * width)
    rows = (rest // width)[:, None] * stride[0] + torch.arange(kernel[0]) * dilation[0]
    cols = (rest % width)[:, None] * stride[1] + torch.arange(kernel[1]) * dilation[1]
    taken = x.permute(0, 2, 3, 1)[n[:, None, None], rows[:, :, None], cols[:, None, :]]  # [P, kh, kw, C]
    g = layer.groups
    columns = taken.permute(3, 1, 2, 0).reshape(g, x.shape[1] // g, -1, len(chosen))
    return columns.reshape(g, -1, len(chosen))


def supports(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear))


@torch.no_grad()
def moments(
    layer: Any, quantized: list[Tensor], exact: list[Tensor], outputs: list[Tensor], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Centred second moments (H, G), each [groups, C, C], from about POSITIONS random output positions.

    outputs: the layer's float outputs, used for their sizes only.
    """
    share = max(1, POSITIONS // len(quantized))
    columns_q, columns_x = [], []
    for xq, x, y in zip(quantized, exact, outputs, strict=True):
        count = y.numel() // y.shape[-1 if isinstance(layer, nn.Linear) else 1]
        chosen = torch.randint(0, count, (min(share, count),), generator=rng)
        columns_q.append(patches(layer, xq, chosen))
        columns_x.append(patches(layer, x, chosen))
    q, x = torch.cat(columns_q, 2), torch.cat(columns_x, 2)
    q, x = q - q.mean(2, keepdim=True), x - x.mean(2, keepdim=True)
    n = q.shape[2]
    return q @ q.transpose(1, 2) / n, x @ q.transpose(1, 2) / n


def _ridge(h: Tensor, share: float) -> Tensor:
    diagonal = torch.diagonal(h, dim1=1, dim2=2).mean(1).clamp(min=1e-10)
    return share * diagonal[:, None, None] * torch.eye(h.shape[1])


@torch.no_grad()
def refit(weight: Tensor, h: Tensor, g: Tensor, share: float = 0.1) -> Tensor:
    """Step 1. weight [groups, out, C]."""
    ridge = _ridge(h, share)
    return torch.linalg.solve(h + ridge, (weight @ (g + ridge)).transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def gptq(weight: Tensor, h: Tensor, scale: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Step 2. weight [groups, out, C], scale [groups, out] -> integers times scale, same shape."""
    g, o, c = weight.shape
    high = (1 << (bits - 1)) - 1
    h = h + _ridge(h, damping)
    order = torch.argsort(torch.diagonal(h, dim1=1, dim2=2), 1, descending=True)
    w = weight.gather(2, order[:, None, :].expand(g, o, c)).clone()
    h = h.gather(1, order[:, :, None].expand(g, c, c)).gather(2, order[:, None, :].expand(g, c, c)).double()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    out = torch.empty_like(w)
    for start in range(0, c, _BLOCK):
        stop = min(start + _BLOCK, c)
        errors = torch.empty(g, o, stop - start)
        for i in range(start, stop):
            column = w[:, :, i]
            rounded = torch.clamp(torch.round(column / scale), -high, high) * scale
            out[:, :, i] = rounded
            error = (column - rounded) / upper[:, i, i][:, None]
            errors[:, :, i - start] = error
            if i + 1 < stop:
                w[:, :, i + 1 : stop] -= error[:, :, None] * upper[:, i, i + 1 : stop][:, None, :]
        if stop < c:
            w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return torch.empty_like(out).scatter_(2, order[:, None, :].expand(g, o, c), out)
