"""What is stored is what was compressed: packing, strict reload, every way in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import compress
from compress import CompressConfig
from compress.recipe import load_float, pack, unpack
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec
from tests.conftest import CALIB, MODEL, TEST, deploy, perturb


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_pack_and_unpack(bits: int, shape: list[int], seed: int) -> None:
    high = (1 << (bits - 1)) - 1
    values = torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    stored = pack(values, bits)
    assert stored.numel() == -(-values.numel() // {2: 4, 3: 2, 4: 2}.get(bits, 1))
    assert torch.equal(unpack(stored, bits, values.shape), values)


def test_reload_is_bit_equal_and_float_is_the_original(fashion_run: Path) -> None:
    from deploy.checkpoint import load

    x = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        again = [compress.load(fashion_run / "compress")(x) for _ in range(2)]
        assert torch.equal(again[0], again[1]) and float(again[0].std()) > 0.1
        assert torch.equal(load_float(fashion_run / "compress")(x), load(Path(MODEL)).module(x))


@pytest.mark.parametrize("change", ["missing", "shape", "extra"])
def test_reload_is_strict(change: str, fashion_run: Path, tmp_path: Path) -> None:
    for name in ("recipe.json", "float.safetensors"):
        (tmp_path / name).write_bytes((fashion_run / "compress" / name).read_bytes())
    state = load_file(fashion_run / "compress" / "model.safetensors")
    if change == "missing":
        del state["head.weight"]
    elif change == "shape":
        state["head.weight"] = state["head.weight"][:5].contiguous()
    else:
        state["tail.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="run deploy compress again"):
        compress.load(tmp_path)


def test_factory_of_the_user_needs_the_flag_again(tmp_path: Path) -> None:
    state = tmp_path / "s.pt"
    torch.save(load_file(MODEL), state)
    arch = "compress.models.fashion:fashion_cnn"
    flags = ["--calib", "random", "--calib-samples", "32", "-o", str(tmp_path / "c")]
    assert deploy("compress", str(state), "--arch", arch, *flags).code == 0
    ran = deploy("export", str(tmp_path / "c"), "-o", str(tmp_path / "e"))
    assert ran.code == 2 and "--arch" in ran.err
    assert deploy("export", str(tmp_path / "c"), "-o", str(tmp_path / "e"), "--arch", arch).code == 0


def test_timm_training_checkpoint(tmp_path: Path) -> None:
    """What timm's train script saves: arch, state_dict with a DataParallel prefix, argparse arguments, another class count."""
    import argparse

    import timm

    torch.manual_seed(0)
    module = timm.create_model("resnet18", num_classes=7)
    perturb(module)
    state = {f"module.{k}": v for k, v in module.state_dict().items()}
    torch.save(
        {"epoch": 3, "arch": "resnet18", "state_dict": state, "args": argparse.Namespace(lr=0.1), "version": 2},
        tmp_path / "m.pt",
    )
    from deploy.checkpoint import load

    loaded = load(tmp_path / "m.pt")
    assert (
        loaded.arch == "timm:resnet18"
        and loaded.arch_args["num_classes"] == 7
        and loaded.inputs[0].shape == (1, 3, 224, 224)
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module.eval()(x))


def test_exported_program(tmp_path: Path) -> None:
    """A .pt2 goes the whole way: its layers are raised, folded, quantized; the folder reloads."""
    from compress.models.fashion import fashion_cnn

    module = fashion_cnn()
    module.load_state_dict(load_file(MODEL), strict=False)
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 1, 28, 28),)), tmp_path / "m.pt2")
    ran = deploy(
        "compress",
        str(tmp_path / "m.pt2"),
        "--bits",
        "4",
        "--calib",
        CALIB,
        "--eval",
        TEST,
        "--eval-samples",
        "300",
        "-o",
        str(tmp_path / "c"),
        "--json",
    )
    assert ran.code == 0, ran.err
    summary = json.loads(ran.out)["summary"]
    assert summary["folded"] == 6 and summary["quantized_layers"] == 7
    assert summary["accuracy"]["compressed_percent"] >= summary["accuracy"]["float_percent"] - 2
    assert deploy("export", str(tmp_path / "c"), "-o", str(tmp_path / "e")).code == 0


def test_bare_command_calibrates_without_data(tmp_path: Path) -> None:
    ran = deploy("compress", MODEL, "--bits", "4", "--eval", TEST, "-o", str(tmp_path / "c"))
    assert ran.code == 0
    assert ran.out.splitlines()[0].startswith("calibrated on SYNTHETIC inputs") and "--calib" in ran.out.splitlines()[0]
    summary = json.loads((tmp_path / "c" / "manifest.json").read_text())["summary"]
    assert summary["accuracy"]["float_percent"] - summary["accuracy"]["compressed_percent"] <= 2.0


def test_no_batchnorm_and_no_data_is_weights_only(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    ran = deploy("compress", str(checkpoint("deit_tiny_patch16_224")), "-o", str(tmp_path / "c"))
    assert ran.code == 0 and ran.out.splitlines()[0].startswith("WEIGHTS ONLY") and "--calib" in ran.out.splitlines()[0]


def test_python_interface_on_a_module() -> None:
    """`compress.compress` on a plain nn.Module with its own data, layer overrides, and a layer kept in float."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 144, 5),
    )
    perturb(net)
    rng = np.random.default_rng(0)
    batches = [Batch((rng.standard_normal((16, 3, 6, 6), dtype=np.float32),)) for _ in range(4)]
    config = CompressConfig(bits=4, layer=("3=float",), first_last_bits=8)
    result = compress.compress(net.eval(), config, inputs=(InputSpec("input", (1, 3, 6, 6)),), calibration=batches)
    assert {n: r["bits"] for n, r in result.record["layers"].items()} == {"0": 8, "6": 8}
    assert result.record["float_layers"] == {"3": "kept in float by --layer"}
    assert result.record["accuracy"]["sqnr_db"] > 20


def test_branches_are_merged_before_quantization(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    ran = deploy(
        "compress",
        str(checkpoint("repvgg_a0")),
        "--calib",
        "random",
        "--calib-samples",
        "8",
        "--input-shape",
        "1x3x64x64",
        "-o",
        str(tmp_path / "c"),
        "--json",
    )
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "c" / "record.json").read_text())
    assert len(record["merged"]["blocks"]) > 10 and 0 < record["merged"]["error"] < 1e-4
    assert all(r["kind"] in ("Conv2d", "Linear") for r in record["layers"].values()) and len(record["layers"]) < 30


def test_per_tensor_weights_are_equalized() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 4),
    )
    with torch.no_grad():
        net[0].weight *= torch.logspace(-2, 1, 16)[:, None, None, None]  # type: ignore[operator]
    rng = np.random.default_rng(0)
    batches = [Batch((rng.standard_normal((32, 3, 8, 8), dtype=np.float32),))]
    figures = {}
    for choice in ("on", "off"):
        config = CompressConfig(bits=8, granularity="tensor", equalize=choice, activations="none")
        record = compress.compress(
            net.eval(), config, inputs=(InputSpec("input", (1, 3, 8, 8)),), calibration=batches
        ).record
        figures[choice] = record["accuracy"]["sqnr_db"]
    assert figures["on"] > figures["off"] + 3, figures
