"""The whole path for every family: score, search, slim, refit, store, reload, ONNX, ONNX Runtime, with parity; and its composition with quantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.api import compress
from compress.config import CompressConfig
from compress.prune.run import rebuild
from compress.quantize.scheme import is_quantized
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec
from export.stage import FLOAT, QONNX, RUNTIME, convert
from tests.compress.small_transformers import FAMILIES, example
from tests.conftest import CALIB, MODEL, TEST, VIT, deploy

FAST = ("gpt2", "roberta", "llama", "swin", "segformer")


def specs(name: str) -> tuple[InputSpec, ...]:
    module = FAMILIES[name]()
    found: Any = getattr(module, "inputs", None)
    return found or (InputSpec("input", (1, 3, 32, 32)),)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != "llama-untied"]
)
def test_to_onnx_runtime(name: str) -> None:
    module = FAMILIES[name]()
    inputs = example(module, 16)
    batch = Batch(tuple(x.numpy() for x in inputs))
    config = CompressConfig(prune="optin", macs=0.7, round_to=4, bits=32, controls=False)
    result = compress(module, config, inputs=specs(name), calibration=[batch])
    row = result.record["prune"]
    assert row["macs_left"] <= 0.7 and row["equal"] < 1e-5
    files, record = convert(module, result.module, specs(name), samples=2)
    assert set(files) == {FLOAT, RUNTIME} and len(files[RUNTIME].SerializeToString()) < len(
        files[FLOAT].SerializeToString()
    )
    checks = record["parity"]["checks"]
    assert [c["what"] for c in checks] == [FLOAT, RUNTIME] and all(c["figure"] < 1e-3 for c in checks)


def test_pruned_and_quantized() -> None:
    """int8 on top: dynamic ranges in a BERT, integer weights stored, ONNX Runtime near the compressed module."""
    module = FAMILIES["bert-classifier"]()
    batch = Batch(tuple(x.numpy() for x in example(module, 16)))
    result = compress(
        module,
        CompressConfig(prune="optin", macs=0.6, round_to=4, controls=False),
        inputs=specs("bert-classifier"),
        calibration=[batch],
    )
    quantized = [n for n, m in result.module.named_modules() if is_quantized(m)]
    assert any("query" in n for n in quantized) and result.record["prune"]["macs_left"] <= 0.6
    files, _ = convert(module, result.module, specs("bert-classifier"), samples=2)
    assert {n.op_type for n in files[RUNTIME].graph.node} >= {"DynamicQuantizeLinear", "MatMulInteger"}
    assert QONNX in files


def test_command_line_on_a_trained_vit(tmp_path: Path) -> None:
    """`deploy compress --prune` at 4 bits, fine-tuned, exported, verified; the accuracy of every stage is in the record."""
    argv = [
        str(VIT),
        "--calib",
        CALIB,
        "--eval",
        TEST,
        "--eval-samples",
        "500",
        "--prune",
        "optin",
        "--macs",
        "0.7",
        "--bits",
        "8",
        "-o",
        str(tmp_path / "small"),
    ]
    done = deploy("compress", *argv)
    assert done.code == 0, done.err
    assert "pruned by optin: 69." in done.out or "pruned by optin: 70.0" in done.out
    record = json.loads((tmp_path / "small" / "record.json").read_text())
    assert record["prune"]["output_error"]["optin"] < min(
        v for k, v in record["prune"]["output_error"].items() if k != "optin"
    )
    assert (
        record["accuracy"]["float_percent"] > 88
        and record["accuracy"]["compressed_percent"] > record["accuracy"]["float_percent"] - 6
    )
    assert record["pruned_accuracy"]["compressed_percent"] > record["accuracy"]["float_percent"] - 6
    assert deploy("export", str(tmp_path / "small"), "-o", str(tmp_path / "onnx")).code == 0
    for folder in ("small", "onnx"):
        checked = deploy("verify", str(tmp_path / folder))
        assert checked.code == 0, checked.out + checked.err


def test_pruning_then_finetuning(tmp_path: Path) -> None:
    """The fine-tuning engine takes a pruned model: 2-bit weights trained against the dense float model."""
    argv = [str(VIT), "--calib", CALIB, "--train", CALIB, "--prune", "optin", "--macs", "0.7", "--no-controls", "--bits", "2", "--finetune", "--epochs", "3", "--batch", "32", "-o", str(tmp_path / "small")]  # fmt: skip
    done = deploy("compress", *argv)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "small" / "record.json").read_text())
    assert record["finetune"]["steps"] > 10 and record["accuracy"]["sqnr_db"] > record["ptq_accuracy"]["sqnr_db"]


def test_channels_by_the_command_line(tmp_path: Path) -> None:
    """A CNN by channels: stored, reloaded, exported, verified; a recipe that was tampered with is refused."""
    argv = [
        MODEL,
        "--calib",
        CALIB,
        "--prune",
        "channels",
        "--macs",
        "0.8",
        "--bits",
        "8",
        "-o",
        str(tmp_path / "small"),
    ]
    done = deploy("compress", *argv)
    assert done.code == 0 and "pruned by channels: " in done.out, done.err
    assert deploy("export", str(tmp_path / "small"), "-o", str(tmp_path / "onnx")).code == 0
    assert deploy("verify", str(tmp_path / "small")).code == 0
    recipe = json.loads((tmp_path / "small" / "recipe.json").read_text())
    recipe["prune"]["history"][0][2] = [10_000]
    (tmp_path / "small" / "recipe.json").write_text(json.dumps(recipe))
    done = deploy("export", str(tmp_path / "small"), "-o", str(tmp_path / "again"))
    assert done.code == 2 and "fit" in done.err, done.err


@pytest.mark.parametrize(
    "change",
    [
        {"form": "x"}, {"keep": []}, {"keep": None}, {"keep": {"blocks.0.heads": [0, 0]}}, {"keep": {"blocks.0.heads": [1.5]}}, {"keep": {"blocks.0.heads": [2, 1]}},
        {"keep": {"blocks.0.heads": [-1]}}, {"keep": {"blocks.0.heads": [True]}}, {"keep": {"hidden": []}}, {"keep": {"elsewhere": [0]}}, {"tokens": 3}, {"tokens": [-1, 0]},
        {"tokens": [99, 0]}, {"tokens": [1]}, {"tokens": "ab"}, {"vocabulary": [0]}, {"more": 1}, {"form": "channels"}, {"form": "channels", "history": [["blocks", True, [0]]]},
        {"form": "channels", "history": [["head"]]}, {"form": "channels", "history": [["head", True, "x"]]}, {"form": "channels", "history": [["head", True, [10**30]]]},
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_is_checked(change: dict[str, Any]) -> None:
    module = FAMILIES["vit"]()
    with pytest.raises(UserError):
        rebuild(module, {"form": "units", "keep": {}} | change, specs("vit"))
    with pytest.raises(UserError):
        rebuild(module, "x", specs("vit"))


def test_the_pruned_network_is_stored_small(tmp_path: Path) -> None:
    done = deploy(
        "compress",
        str(VIT),
        "--calib",
        CALIB,
        "--prune",
        "activation",
        "--macs",
        "0.5",
        "--bits",
        "32",
        "--no-controls",
        "-o",
        str(tmp_path / "small"),
    )
    assert done.code == 0, done.err
    folder = tmp_path / "small"
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (folder / "float.safetensors").stat().st_size
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["prune"]["keep"] = {k: v[:-1] for k, v in recipe["prune"]["keep"].items()}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    done = deploy("export", str(folder), "-o", str(tmp_path / "onnx"))
    assert done.code == 2 and "does not fit" in done.err and not (tmp_path / "onnx").exists()


def test_same_seed_same_model() -> None:
    module = FAMILIES["vit"]()
    batch = Batch(tuple(x.numpy() for x in example(module, 16)))
    states = []
    for _ in range(2):
        result = compress(
            module,
            CompressConfig(prune="optin", macs=0.7, bits=32, controls=False),
            inputs=specs("vit"),
            calibration=[batch],
        )
        states.append(result.module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert np.isfinite(sum(float(v.double().sum()) for v in states[0].values()))
