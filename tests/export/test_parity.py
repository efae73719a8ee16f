"""The parity checks fail when something is wrong, and refuse to prove things by constant outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploy.errors import BoundError
from deploy.inputs import InputSpec
from export import onnxfile, parity
from export.stage import convert
from tests.conftest import deploy

SPECS = (InputSpec("input", (1, 1, 28, 28)),)


def test_constant_output_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(net[1].weight)
    with pytest.raises(BoundError, match="constant"):
        convert(net.eval(), None, SPECS)


def test_integers_of_the_demo_equal_the_reference(fashion_run: Path) -> None:
    quantized = onnxfile.load(fashion_run / "export" / "model.qonnx.onnx", check=False)
    runtime = onnxfile.load(fashion_run / "export" / "model.onnx")
    values = {"input": parity.fresh(SPECS, 2, 5)[1][0]}
    rows = parity.integer_steps(quantized, runtime, values)
    assert len(rows) == 8 and sum(r["values"] for r in rows) > 80_000
    assert parity.check_steps(rows) == "" and sum(r["own_differ"] for r in rows) <= 5


@pytest.mark.parametrize("what", ["weight", "bias", "scale"])
def test_a_changed_file_is_caught(what: str, fashion_run: Path) -> None:
    """Break the runtime file on purpose: the layer is named."""
    quantized = onnxfile.load(fashion_run / "export" / "model.qonnx.onnx", check=False)
    broken = onnxfile.load(fashion_run / "export" / "model.onnx")
    kinds = {"weight": onnx.TensorProto.INT4, "bias": onnx.TensorProto.INT32}
    if what == "scale":
        tensor = next(
            i
            for i in broken.graph.initializer
            if i.name.startswith("quantizers.features_1") and i.name.endswith("_scale")
        )
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name)
        )
    else:
        tensor = next(i for i in broken.graph.initializer if i.data_type == kinds[what])
        values = onnx.numpy_helper.to_array(tensor).copy()
        flat = values.reshape(-1)
        flat[:40] = (
            np.clip(flat[:40].astype(np.int64) * 2 + 3, -7, 7).astype(values.dtype)
            if what == "weight"
            else flat[:40] + 100_000
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    rows = parity.integer_steps(quantized, broken, {"input": parity.fresh(SPECS, 2, 5)[1][0]})
    assert parity.check_steps(rows).startswith("quantizers.")


def test_verify_notices_tampering(fashion_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "out"
    shutil.copytree(fashion_run, copy)
    ran = deploy("verify", str(copy))
    assert ran.code == 0 and "FAIL" not in ran.out, ran.out
    with (copy / "export" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    ran = deploy("verify", str(copy))
    assert ran.code == 4 and "FAIL" in ran.out and "model.onnx" in ran.out


def test_attention_that_the_exporter_refuses_is_written_out(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """5-D scaled_dot_product_attention: exported on the second try, parity kept, said in the record."""

    class Five(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2, 3))

    from compress.recipe import structure

    torch.manual_seed(0)
    graph, _ = structure(Five().eval(), 1, False, True)
    _, record = convert(graph, None, (InputSpec("x", (1, 2, 3, 5, 8)),))
    assert record["parity"]["checks"][0]["passed"]
    assert any("attention was written out" in r for r in record["remarks"])


def test_open_batch(tmp_path: Path, fashion_run: Path) -> None:
    ran = deploy("export", str(fashion_run / "compress"), "--dynamic-batch", "-o", str(tmp_path / "e"))
    assert ran.code == 0, ran.err
    program = parity.session(onnxfile.load(tmp_path / "e" / "model.onnx"))
    x = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    many = program.run(None, {"input": x})[0]
    assert many.shape == (5, 10) and np.allclose(many[3:4], program.run(None, {"input": x[3:4]})[0], atol=1e-5)
