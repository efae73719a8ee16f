"""Concatenations that pass a value on share one scale: which quantizers, and that nothing is lost by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from compress import recipe as recipes
from compress.api import compress
from compress.config import CompressConfig
from compress.quantize.scheme import Quantizer
from deploy.data import Batch
from deploy.inputs import InputSpec

SPECS = (InputSpec("x", (1, 3, 12, 12)),)


class Dense(nn.Module):
    """Each layer's output is appended to everything before; `c` follows the last concatenation directly."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Conv2d(3, 4, 1)
        self.a, self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.c.weight.mul_(0.02)  # a range of its own, far below the others'

    def forward(self, x: Tensor) -> Tensor:
        s = self.s(x)
        y = torch.cat([s, self.a(s)], 1)
        z = torch.cat([y, self.b(y)], 1)
        out: Tensor = self.last(self.c(z))
        return out


class FromInput(nn.Module):
    """The model's own input is the first part of the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.a(x)], 1)
        out: Tensor = self.last(torch.cat([y, self.b(y)], 1))
        return out


def rows(positive: bool) -> list[Batch]:
    made = [np.random.default_rng(k).normal(size=(8, 3, 12, 12)).astype(np.float32) for k in range(4)]
    return [Batch((np.abs(v) if positive else v,)) for v in made]


def quality(net: nn.Module, positive: bool = False, **settings: object) -> tuple[float, object]:
    config = CompressConfig(bits=8, **settings)  # type: ignore[arg-type]
    data = rows(positive)
    done = compress(net.eval(), config, inputs=SPECS, calibration=data, evaluation=data)
    return done.record["accuracy"]["sqnr_db"], done


def scales(done: object) -> dict[str, float]:
    module = done.module  # type: ignore[attr-defined]
    return {n.removeprefix("quantizers."): m.scale for n, m in module.named_modules() if isinstance(m, Quantizer)}


def test_a_shuffle_stage_has_one_scale() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), InvertedResidual(16, 16, 1), InvertedResidual(16, 16, 1), nn.Conv2d(16, 4, 1)
    )
    db, done = quality(net)
    (group,) = done.recipe["plan"]["shared"]  # type: ignore[attr-defined]
    found = scales(done)
    assert len(group) >= 5 and len({found[n] for n in group}) == 1 and len(set(found.values())) > 1
    assert db > 30


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("positive", [False, True])
def test_an_input_of_another_sign_has_its_own(rounding: str, positive: bool) -> None:
    torch.manual_seed(0)
    db, done = quality(FromInput(), positive, rounding=rounding)
    found = scales(done)
    assert (found["x"] == found["cat"]) == (not positive)
    assert db > 30


@pytest.mark.parametrize("layer", [(), ("c=float",), ("b=8/4",)])
def test_layers_behind_and_overrides_are_no_members(layer: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    db, done = quality(Dense(), layer=layer)
    found = scales(done)
    members = {n for group in done.recipe["plan"]["shared"] for n in group}  # type: ignore[attr-defined]
    if layer == ("c=float",):  # nothing wants the last concatenation on a grid, so that no value is passed on
        assert not members
        assert db > 35
        return
    assert "c" not in members and "s" in members
    assert db > (20 if "b=8/4" in layer else 35)
    bits = {n: s["bits"] for n, s in done.recipe["plan"]["quantizers"].items()}  # type: ignore[attr-defined]
    if layer == ("b=8/4",):  # its input alone is narrower; the others keep theirs, on one scale
        assert bits["cat"] == 4 and {b for n, b in bits.items() if n != "cat"} == {8}
    assert len({found[n] for n in members}) == 1


def test_saved_loaded_and_fine_tuned(tmp_path: object) -> None:
    """One scale goes to disk and comes back; training moves it for all."""
    torch.manual_seed(0)
    data = rows(False)
    config = CompressConfig(bits=4, finetune=True, epochs=1, batch=8, held_out=0.1, scale_lr=0.05)
    plain = compress(Dense().eval(), CompressConfig(bits=4), inputs=SPECS, calibration=data)
    tuned = compress(Dense().eval(), config, inputs=SPECS, calibration=data, training=data)
    for done in (plain, tuned):
        found = scales(done)
        (group,) = done.recipe["plan"]["shared"]
        assert len({found[n] for n in group}) == 1
        state = recipes.state_of(done.module)
        assert (
            len({float(v) for k, v in state.items() if any(f"quantizers.{n}." in k for n in group) and v.numel() == 1})
            == 1
        )
