"""Architectures that runtimes did not take as they are: torch, exported, on every runtime. Random weights, none of them zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from deploy.inputs import InputSpec
from export.torch2onnx import export_float
from hw.runtime import runtimes


class GlobalFilter(nn.Module):
    """A gate in the frequency domain, as in HorNet-GF and GFNet: rfft2, a complex weight, irfft2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 32, 1), nn.Conv2d(16, 8, 1)
        self.weight = nn.Parameter(torch.randn(16, 14, 8, 2) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        bands = torch.fft.rfft2(right, dim=(2, 3), norm="ortho") * torch.view_as_complex(self.weight)
        return self.last(left * torch.fft.irfft2(bands, s=(14, 14), dim=(2, 3), norm="ortho"))


class LongConvolution(nn.Module):
    """A convolution as long as its signal, through the frequency domain, as in S4D."""

    def __init__(self, channels: int = 6, length: int = 40) -> None:
        super().__init__()
        time = torch.arange(length)
        self.register_buffer("kernel", torch.exp(-0.1 * time) * torch.cos(0.7 * time) * torch.randn(channels, 1))
        self.mix, self.length = nn.Conv1d(channels, 2 * channels, 1), length

    def forward(self, x: Tensor) -> Tensor:
        bands = torch.fft.rfft(x, n=2 * self.length) * torch.fft.rfft(self.kernel, n=2 * self.length)
        y = torch.fft.irfft(bands, n=2 * self.length)[..., : self.length]
        return functional.glu(self.mix(functional.gelu(y + x)), dim=1)


class Recurrent(nn.Module):
    """Two layers in both directions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = getattr(nn, kind)(10, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Deformable(nn.Module):
    """Offsets and masks from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.mask = nn.Conv2d(6, 18, 3, padding=1), nn.Conv2d(6, 9, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(10, 6, 3, 3) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return torchvision.ops.deform_conv2d(x, self.offset(x), self.weight, padding=1, mask=self.mask(x).sigmoid())


class Outlook(nn.Module):
    """Attention over windows, folded back (Col2Im), with five axes, as in VOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.attend = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2 * 81, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = functional.unfold(self.value(x), 3, padding=1).reshape(1, 2, 4, 9, 64).permute(0, 1, 4, 3, 2)
        weights = self.attend(x).reshape(1, 2, 9, 9, 64).permute(0, 1, 4, 2, 3).softmax(-1)
        out = (weights @ patches).permute(0, 1, 4, 3, 2).reshape(1, 72, 64)
        return functional.fold(out, (8, 8), 3, padding=1)


SMALL = {
    "global filter": (GlobalFilter, (1, 8, 14, 14)), "long convolution": (LongConvolution, (1, 6, 40)),
    "LSTM": (lambda: Recurrent("LSTM"), (1, 12, 10)), "GRU": (lambda: Recurrent("GRU"), (1, 12, 10)),
    "deformable": (Deformable, (1, 6, 9, 9)), "outlook": (Outlook, (1, 8, 8, 8)),
}  # fmt: skip
LARGE = ("hiera_tiny_224", "twins_svt_small", "twins_pcpvt_small", "volo_d1_224")


def check(module: nn.Module, shape: tuple[int, ...], name: str, folder: Path) -> None:
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if float(parameter.abs().max()) == 0:
                parameter.normal_(0, 0.05)
    model = export_float(module, (InputSpec("input", shape),))[0]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = module(x).numpy()
    got = runtimes()[name].load(model, 1, folder).run([x.numpy()])[0]
    assert np.ptp(want) > 0 and np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("runtime", ["onnxruntime", "tvm", "openvino"])
@pytest.mark.parametrize("name", SMALL)
def test_small(name: str, runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = SMALL[name]
    check(build(), shape, runtime, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "tvm"])
@pytest.mark.parametrize("name", LARGE)
def test_large(name: str, runtime: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    check(timm.create_model(name, pretrained=False), (1, 3, 224, 224), runtime, tmp_path)
