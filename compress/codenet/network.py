"""ShuffleNetV2 backbone, a neck of deformable layers, CenterNet's heads; configurations a to e (CoDeNet, sections 3 and 5).

    stem (stride 4 in all) -> 3 shuffle stages -> 1x1 -> 3 x [spatial operator, 1x1, BN, ReLU, nearest 2x] -> heads

The neck's order is that of the network whose 0.76 MB the paper reports: the spatial operator works on a level's input channels,
the 1x1 convolution after it changes their number. No skip connections, no additions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from compress.deform import DeformConv2d
from deploy.arch import Preprocess
from deploy.inputs import InputSpec


def _depthwise(kernel: int) -> Callable[[int, int], nn.Module]:
    return lambda c, _: nn.Conv2d(c, c, kernel, padding=kernel // 2, groups=c, bias=False)


def _deform(**how: Any) -> Callable[[int, int], nn.Module]:
    return lambda c, _: DeformConv2d(c, c, **how)


# the ladder, each step with its switch; a full operator changes the number of channels itself and needs no 1x1 convolution
OPERATORS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv3": lambda c, out: nn.Conv2d(c, out, 3, padding=1, bias=False),
    "dw3": _depthwise(3),
    "dw5": _depthwise(5),
    "dw7": _depthwise(7),
    "dw9": _depthwise(9),
    "deform-full": lambda c, out: DeformConv2d(c, out, depthwise=False, bound=None, square=False, integer=False),
    "deform-dw": _deform(bound=None, square=False, integer=False),
    "deform-bound": _deform(square=False, integer=False),
    "deform-square": _deform(integer=False),
    "deform": _deform(),
}
FULL = ("conv3", "deform-full")
PREPROCESS = Preprocess((0.5, 0.5, 0.5), (64 / 255, 64 / 255, 64 / 255))  # pixels: (x - 127.5) / 64


@dataclass(frozen=True)
class Config:
    """resolution: image side in pixels. stem: 's4' (one 3x3 convolution, stride 4) or 's2' (stride 2, then 3x3 max pooling).

    channels: of the stem, the three stages and the last 1x1 convolution. neck: channels of the three levels.
    """

    resolution: int
    stem: str
    channels: tuple[int, int, int, int, int]
    repeats: tuple[int, int, int] = (4, 8, 4)
    neck: tuple[int, int, int] = (256, 128, 64)
    head: int = 64


_1X, _2X = (24, 116, 232, 464, 1024), (24, 244, 488, 976, 2153)
CONFIGS = {
    "a": Config(256, "s4", _1X),
    "b": Config(256, "s2", _1X),
    "c": Config(512, "s4", _1X),
    "d": Config(512, "s4", _2X),
    "e": Config(512, "s2", _2X),
    # for training on a CPU within minutes; not in the paper
    "small": Config(128, "s2", (24, 48, 96, 192, 256), (2, 4, 2), (128, 64, 64), 64),
}


def _norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _stem(config: Config) -> nn.Sequential:
    c = config.channels[0]
    if config.stem == "s4":
        return nn.Sequential(nn.Conv2d(3, c, 3, stride=4, padding=1, bias=False), *_norm(c))
    return nn.Sequential(
        nn.Conv2d(3, c, 3, stride=2, padding=1, bias=False), *_norm(c), nn.MaxPool2d(3, stride=2, padding=1)
    )


def _backbone(config: Config) -> nn.Sequential:
    stages: list[nn.Module] = [_stem(config)]
    c = config.channels[0]
    for out, repeats in zip(config.channels[1:4], config.repeats, strict=True):
        stages.append(
            nn.Sequential(InvertedResidual(c, out, 2), *(InvertedResidual(out, out, 1) for _ in range(repeats - 1)))
        )
        c = out
    stages.append(nn.Sequential(nn.Conv2d(c, config.channels[4], 1, bias=False), *_norm(config.channels[4])))
    return nn.Sequential(*stages)


def _level(operator: str, c: int, out: int) -> nn.Sequential:
    rows: list[nn.Module] = [OPERATORS[operator](c, out)]
    if operator not in FULL:
        rows.append(nn.Conv2d(c, out, 1, bias=False))
    return nn.Sequential(*rows, *_norm(out), nn.Upsample(scale_factor=2, mode="nearest"))


def _head(c: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, width, 1, bias=False),
        *_norm(width),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        *_norm(width),
        nn.Conv2d(width, out, 1),
    )


class CoDeNet(nn.Module):
    """Input: float [N, 3, R, R]. Output: [N, classes + 4, R/4, R/4]: class logits, then box size (w, h) and centre offset
    (x, y), both in places of the output map. compress.codenet.decode turns it into boxes.

    operator: a key of OPERATORS. Raises ValueError for an unknown operator.
    """

    def __init__(self, config: Config, classes: int = 20, operator: str = "deform") -> None:
        super().__init__()
        if operator not in OPERATORS:
            raise ValueError(f"operator {operator!r} is not one of {', '.join(OPERATORS)}")
        self.inputs = (InputSpec("image", (1, 3, config.resolution, config.resolution)),)
        self.preprocess = PREPROCESS
        self.config, self.classes = config, classes
        self.backbone = _backbone(config)
        sizes = (config.channels[4], *config.neck)
        self.neck = nn.Sequential(*(_level(operator, c, out) for c, out in pairwise(sizes)))
        self.heat = _head(config.neck[2], config.head, classes)
        self.size = _head(config.neck[2], config.head, 2)
        self.shift = _head(config.neck[2], config.head, 2)
        nn.init.constant_(self.heat[-1].bias, -2.19)  # sigmoid 0.1: Lin et al. 2017, section 4.1

    def forward(self, x: Tensor) -> Tensor:
        y = self.neck(self.backbone(x))
        return torch.cat([self.heat(y), self.size(y), self.shift(y)], 1)


def codenet(config: str = "a", classes: int = 20, operator: str = "deform", resolution: int = 0) -> CoDeNet:
    """Factory behind `--arch deploy:codenet`; `resolution` overrides the configuration's. Raises ValueError for unknown names."""
    if config not in CONFIGS:
        raise ValueError(f"configuration {config!r} is not one of {', '.join(CONFIGS)}")
    if not isinstance(resolution, int) or not isinstance(classes, int) or resolution < 0 or classes < 1:
        raise ValueError(f"classes {classes!r} and resolution {resolution!r} must be whole numbers, classes at least 1")
    if resolution % 32:
        raise ValueError(f"a resolution of {resolution} is no multiple of 32")
    chosen = CONFIGS[config]
    return CoDeNet(replace(chosen, resolution=resolution) if resolution else chosen, classes, operator)
