"""Integers in TVM: convolutions and products to the bit, on every x86 machine that this computer can stand for; rounding; constants of quantized files."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hw.runtime.tvm.machine import AMX, X86, Machine, flags, host
from hw.runtime.tvm.ops.quant import quotient
from hw.runtime.tvm.rules import amx
from tests.hw.test_tvm import network, normal, run, same

# what this computer can run: its own machine, and those of older ones
NEEDS = {AMX.name: {"amx_int8"}, X86[0].name: {"avx512_vnni"}, X86[1].name: {"avx512bw"}, X86[2].name: {"avx2", "fma"}}
MACHINES = [m for m in (AMX, *X86) if m is host() or (m is not AMX and NEEDS[m.name] <= flags())]


def quantized(
    kind: str, channels: int, out: int, size: int, kernel: int, stride: int, groups: int, seed: int
) -> tuple[onnx.ModelProto, np.ndarray]:
    """Quantize -> Conv of integers -> Quantize, and the integers that must come out."""
    rng = np.random.default_rng(seed)
    zero = int(rng.integers(100, 140)) if kind == "uint8" else int(rng.integers(-20, 20))
    w = rng.integers(-127, 128, (out, channels // groups, kernel, kernel)).astype(np.int8)
    scales: dict[str, Any] = {
        "xs": np.float32(0.02), "xz": np.asarray(zero, kind), "ws": (0.004 + 0.01 * rng.random(out)).astype(np.float32), "wz": np.zeros(out, np.int8),
        "ys": np.float32(0.05 * kernel), "yz": np.uint8(120), "bs": np.float32(1), "bz": np.int32(0),
    }  # fmt: skip
    bias = rng.integers(-2000, 2000, out).astype(np.int32)
    scales["bs"] = (scales["xs"] * scales["ws"]).astype(np.float32)
    scales["bz"] = np.zeros(out, np.int32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["y"]),
    ]
    model = network(nodes, {"x": (1, channels, size, size)}, {**scales, "w": w, "b": bias})
    x = normal(1, channels, size, size, seed=seed)
    integers = np.clip(np.rint(x / scales["xs"]) + zero, *((0, 255) if kind == "uint8" else (-128, 127))) - zero
    import torch

    sums = torch.nn.functional.conv2d(
        torch.from_numpy(integers).double(), torch.from_numpy(w).double(), torch.from_numpy(bias).double(), stride, kernel // 2, 1, groups
    ).numpy()  # fmt: skip
    factor = (scales["xs"] * scales["ws"] / scales["ys"]).astype(np.float32).reshape(1, -1, 1, 1)
    want = np.clip(np.rint(sums.astype(np.float32) * factor) + np.float32(120), 0, 255)
    return model, (want - 120).astype(np.float32) * scales["ys"]


@settings(max_examples=15, deadline=None, database=None)
@given(
    kind=st.sampled_from(["uint8", "int8"]), channels=st.sampled_from([3, 8, 17, 64]), out=st.sampled_from([8, 24, 32]), size=st.integers(6, 15),
    kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), deep=st.booleans(), seed=st.integers(0, 99), machine=st.sampled_from(MACHINES),
)  # fmt: skip
def test_integer_convolution_is_exact(
    kind: str, channels: int, out: int, size: int, kernel: int, stride: int, deep: bool, seed: int, machine: Machine
) -> None:
    groups = channels if deep else 1
    model, want = quantized(kind, channels, channels if deep else out, size, kernel, stride, groups, seed)
    got, record = run(model, [normal(1, channels, size, size, seed=seed)], machine)
    assert np.array_equal(got, want) and np.ptp(want) > 0
    assert {k["rule"] for k in record["kernels"]} & ({"depthwise"} if deep and channels > 1 else {"qconv", "amx"})


@pytest.mark.skipif(host() is not AMX, reason="this processor has no tile registers")
@settings(max_examples=24, deadline=None, database=None)
@given(
    channels=st.sampled_from([1, 3, 4, 16, 20, 48, 96]), out=st.sampled_from([16, 40, 64]), height=st.integers(4, 17), width=st.integers(4, 35),
    kernel=st.sampled_from([1, 3, 7]), stride=st.integers(1, 2), pad=st.integers(0, 1), dilation=st.integers(1, 2), batch=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_tile_registers_are_exact(
    channels: int, out: int, height: int, width: int, kernel: int, stride: int, pad: int, dilation: int, batch: int, seed: int
) -> None:  # fmt: skip
    """The sums themselves, against torch, for every way in which an image meets a block (tall or wide, with and without a remainder)."""
    import torch
    import tvm
    from tvm import te

    reach = dilation * (kernel - 1)
    shape = (batch, (height + 2 * pad - reach - 1) // stride + 1, (width + 2 * pad - reach - 1) // stride + 1, out)
    assume(shape[1] > 0 and shape[2] > 0)
    block = amx.block_for(shape[1], shape[2], channels, AMX, (stride, stride), (kernel, kernel), (dilation, dilation))
    assume(block is not None)
    rng = np.random.default_rng(seed)
    x, w = rng.integers(0, 256, (batch, height, width, channels)).astype(np.uint8), rng.integers(-128, 128, (out, channels, kernel, kernel)).astype(np.int8)  # fmt: skip
    packed = amx.pack(w, block)
    given = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if block.narrow else x
    image, weight = te.placeholder(given.shape, "uint8", "x"), te.placeholder(packed.shape, "int8", "w")
    border = amx.border_of(shape[1], shape[2], block, (stride, stride), (pad,) * 4)
    read = amx.pixels(border, 7)(image) if block.narrow else image
    sums = amx.compute(shape, block, (stride, stride), (pad,) * 4, (dilation, dilation), 7)(read, weight)
    plus = te.compute(shape, lambda *i: sums(*i) + 1, "plus")
    sch = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([image, weight, plus])}))
    amx.schedule(sch, AMX)
    got = tvm.runtime.tensor(np.zeros(shape, np.int32))
    tvm.compile(sch.mod, target=AMX.tvm_target())["main"](tvm.runtime.tensor(given), tvm.runtime.tensor(packed), got)
    filled = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=7)
    want = torch.nn.functional.conv2d(
        torch.from_numpy(filled.transpose(0, 3, 1, 2).copy()).double(), torch.from_numpy(w).double(), None, stride, 0, dilation
    ).numpy()  # fmt: skip
    assert np.array_equal(got.numpy(), want.transpose(0, 2, 3, 1) + 1)


def _quotient(value: Any, step: Any, i: Any) -> Any:
    return quotient(value[i], step, fma=True)


def test_quotients_are_ieee_divisions() -> None:
    import tvm
    from tvm import te

    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1 << 20) * np.exp(rng.uniform(-20, 20, 1 << 20))).astype(np.float32)
    for number in (0.1, 1 / 3, 0.0078431377, 3.7e-5, 511.0):
        value, step = te.placeholder(x.shape, "float32", "x"), tvm.tirx.const(number, "float32")
        divided = te.compute(x.shape, partial(_quotient, value, step), "q")
        built = tvm.compile(te.create_prim_func([value, divided]), target=host().tvm_target())
        out = tvm.runtime.tensor(np.zeros_like(x))
        built["main"](tvm.runtime.tensor(x), out)
        want = x / np.float32(number)
        near = abs(want) < 1 << 22
        assert near.sum() > 500_000 and np.array_equal(out.numpy()[near], want[near])
        assert (abs(out.numpy()[~near]) >= (1 << 22) - 1).all() and np.array_equal(np.sign(out.numpy()), np.sign(want))


def dynamic_product(rows: int, depth: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["step"]),
        helper.make_node("Mul", ["f", "step"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    w = np.random.default_rng(1).integers(-127, 128, (depth, 40)).astype(np.int8)
    return network(nodes, {"x": (1, rows, depth)}, {"w": w, "ws": np.full(40, 0.01, np.float32), "b": normal(40)})


def test_dynamic_products_follow_onnx_runtime() -> None:
    record = same(dynamic_product(33, 96), [normal(1, 33, 96)], 1e-6)
    assert {"qmatmul", "amx"} & {k["rule"] for k in record["kernels"]}


def test_tile_registers_are_given_back() -> None:
    """ONNX Runtime must not find a configuration that differs from its own in the rows alone (it would use it): in a process of its own, which that ends."""
    script = (
        "from tests.hw.test_tvm import normal, same\nfrom tests.hw.test_tvm_integers import dynamic_product\n"
        "for _ in range(3): same(dynamic_product(28, 64), [normal(1, 28, 64)], 1e-6)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_constants_of_an_integer_file_are_folded() -> None:
    """One row of GatherElements, as transformers' token types are: ONNX's reference implementation fails there."""
    nodes = [
        helper.make_node("GatherElements", ["table", "at"], ["picked"], axis=1),
        helper.make_node("Add", ["x", "picked"], ["s"]),
        helper.make_node("DynamicQuantizeLinear", ["s"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    weights = {"table": normal(1, 9), "at": np.arange(6, dtype=np.int64).reshape(1, 6)}
    record = same(network(nodes, {"x": (1, 6)}, weights), [normal(1, 6, seed=1)])
    assert not record["fallbacks"]
