"""Networks from timm (random weights, every tensor varied) through compress W8A8 -> export -> ONNX Runtime, with parity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import deploy

FAST = ["resnet18", "mobilenetv2_100", "mobileone_s0", "deit_tiny_patch16_224", "efficientvit_b0", "mobilevit_xxs"]
SLOW = [
    "mobilenetv3_small_100", "efficientnet_b0", "efficientnet_lite0", "repvgg_a0", "densenet121", "regnety_002", "dla34", "vovnet39a", "hrnet_w18_small",
    "ghostnet_100", "starnet_s1", "mobilenetv4_conv_small", "repvit_m0_9", "convnext_atto", "inception_next_atto", "poolformer_s12", "edgenext_xx_small",
    "vit_tiny_patch16_224", "levit_128s", "fastvit_t8", "convit_tiny", "pvt_v2_b0", "tiny_vit_5m_224", "mixer_s32_224",
]  # fmt: skip


def _through(path: Path, root: Path) -> dict[str, object]:
    ran = deploy(
        "compress", str(path), "--calib", "random", "--calib-samples", "32", "-o", str(root / "compress"), "-q"
    )
    assert ran.code == 0, ran.err[-600:]
    ran = deploy("export", str(root / "compress"), "-o", str(root / "export"), "--parity-samples", "2", "-q")
    assert ran.code == 0, ran.err[-600:]
    return json.loads((root / "export" / "manifest.json").read_text())["summary"]


def _check(summary: dict[str, object]) -> None:
    parity = summary["parity"]
    checks = {c["what"]: c for c in parity["checks"]}  # type: ignore[index]
    assert checks["float.onnx"]["figure"] < 1e-4
    assert checks["model.onnx"]["figure"] > 15
    assert parity["own_max"] <= 1 and parity["own_differ"] <= 1e-4 * max(parity["integers_compared"], 1)  # type: ignore[index]
    sizes = summary["bytes"]
    assert sizes["float.onnx"] / sizes["model.onnx"] > 2.5  # type: ignore[index]


@pytest.mark.parametrize("name", FAST)
def test_architecture(name: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    _check(_through(checkpoint(name), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_architectures(name: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    _check(_through(checkpoint(name), tmp_path))
