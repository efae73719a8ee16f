"""TVM's import and schedules against ONNX Runtime: convolutions of every kind, products, attention, integers to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import ToolError
from export.parity import session
from hw.runtime.tvm.compile import build
from hw.runtime.tvm.machine import Machine, host
from hw.runtime.tvm.runtime import RUNTIME, fixed
from hw.runtime.tvm.value import reshaped


def network(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], weights: dict[str, np.ndarray], out: str = "y"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(
    model: onnx.ModelProto, values: list[np.ndarray], machine: Machine | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """In this process: one kernel compiles in a moment."""
    import tvm

    executable, record = build(model, machine or host())
    machine = tvm.relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](*[tvm.runtime.tensor(v) for v in values])[0].numpy(), record


def same(model: onnx.ModelProto, values: list[np.ndarray], bound: float = 1e-5) -> dict[str, Any]:
    names = [i.name for i in model.graph.input]
    want = session(model, 1).run(None, dict(zip(names, values, strict=True)))[0]
    got, record = run(model, values)
    assert got.shape == want.shape and np.ptp(want) > 0
    assert np.abs(got - want).max() <= bound * np.abs(want).max()
    assert not [k for k in record["kernels"] if k["why"] or k["rule"] == "plain loops"], record["kernels"]
    return record


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=25, deadline=None, database=None)
@given(
    channels=st.sampled_from([1, 3, 8, 16, 20]), out=st.sampled_from([3, 16, 24, 58, 80]), height=st.integers(5, 12), width=st.integers(5, 19),
    kernel=st.sampled_from([1, 2, 3]), stride=st.integers(1, 2), pad=st.integers(0, 1), dilation=st.integers(1, 2), bias=st.booleans(),
)  # fmt: skip
def test_convolution(
    channels: int, out: int, height: int, width: int, kernel: int, stride: int, pad: int, dilation: int, bias: bool
) -> None:
    weights = {"w": normal(out, channels, kernel, kernel, seed=1)} | ({"b": normal(out, seed=2)} if bias else {})
    nodes = [
        helper.make_node(
            "Conv", ["x", *weights], ["c"], strides=[stride] * 2, pads=[pad] * 4, dilations=[dilation] * 2
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    same(network(nodes, {"x": (1, channels, height, width)}, weights), [normal(1, channels, height, width)])


@pytest.mark.parametrize("groups,channels,out", [(16, 16, 16), (12, 12, 24), (4, 32, 64), (3, 24, 24)])
def test_groups(groups: int, channels: int, out: int) -> None:
    weights = {"w": normal(out, channels // groups, 3, 3, seed=1), "b": normal(out)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, pads=[1] * 4)]
    record = same(network(nodes, {"x": (2, channels, 9, 14)}, weights), [normal(2, channels, 9, 14)])
    assert {k["rule"] for k in record["kernels"]} >= {"depthwise" if groups == channels else "grouped"}


@settings(max_examples=15, deadline=None, database=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    extra=st.integers(0, 1),
    size=st.integers(3, 7),
)
def test_transposed_convolution(kernel: int, stride: int, pad: int, extra: int, size: int) -> None:
    if pad >= kernel or extra >= stride or kernel < stride:
        return
    nodes = [
        helper.make_node(
            "ConvTranspose", ["x", "w", "b"], ["y"], strides=[stride] * 2, pads=[pad] * 4, output_padding=[extra] * 2
        )
    ]
    model = network(nodes, {"x": (1, 5, size, size + 1)}, {"w": normal(5, 6, kernel, kernel, seed=1), "b": normal(6)})
    same(model, [normal(1, 5, size, size + 1)])


@pytest.mark.parametrize("rows,inner,columns", [(197, 64, 192), (1, 40, 1000), (128, 32, 30), (7, 5, 3), (49, 96, 101)])
def test_products_with_awkward_sizes(rows: int, inner: int, columns: int) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Gelu", ["m"], ["y"])]
    same(network(nodes, {"x": (2, rows, inner)}, {"w": normal(inner, columns, seed=1) / 8}), [normal(2, rows, inner)])


@pytest.mark.parametrize("tokens", [17, 64, 197])
def test_attention(tokens: int) -> None:
    """Heads by reshape and transpose, scores, softmax, values: the transposes are notes until a product needs another order."""
    shape = numpy_helper.from_array(np.array([1, tokens, 3, 16]), "s")
    flat = numpy_helper.from_array(np.array([1, tokens, 48]), "f")
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"m{name}"]),
            helper.make_node("Reshape", [f"m{name}", "s"], [f"r{name}"]),
            helper.make_node("Transpose", [f"r{name}"], [name], perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "f"], ["y"]),
    ]
    model = network(nodes, {"x": (1, tokens, 48)}, {f"w{n}": normal(48, 48, seed=i) / 7 for i, n in enumerate("qkv")})
    model.graph.initializer.extend([shape, flat])
    same(model, [normal(1, tokens, 48)])


def test_shuffle_concat_split_pool_and_gate() -> None:
    """What channel-last orders must survive: split, concat, a channel shuffle, pooling, a squeeze-and-excitation gate, a resize."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Split", ["c"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Sigmoid", ["a"], ["as"]),
        helper.make_node("Concat", ["as", "b"], ["j"], axis=1),
        helper.make_node("Reshape", ["j", "five"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "four"], ["s"]),
        helper.make_node("MaxPool", ["s"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Conv", ["g", "v"], ["h"]),
        helper.make_node("HardSigmoid", ["h"], ["gate"]),
        helper.make_node("Mul", ["p", "gate"], ["m"]),
        helper.make_node("AveragePool", ["m"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["q", "", "scale"], ["z"], mode="nearest"),
        helper.make_node("ReduceMean", ["z", "axes"], ["y"], keepdims=0),
    ]
    weights = {
        "w": normal(32, 3, 3, 3, seed=1), "v": normal(32, 32, 1, 1, seed=2), "five": np.array([1, 2, 16, 12, 12]), "four": np.array([1, 32, 12, 12]),
        "scale": np.array([1, 1, 2, 2], np.float32), "axes": np.array([3]),
    }  # fmt: skip
    same(network(nodes, {"x": (1, 3, 12, 12)}, weights), [normal(1, 3, 12, 12)])


def test_reshapes_that_move_nothing() -> None:
    """[N, C, H, W] with channels last: merging H and W moves nothing, merging C and H does."""
    nhwc = (0, 2, 3, 1)
    assert reshaped((1, 8, 4, 5), nhwc, (1, 8, 20)) == (0, 2, 1)
    assert reshaped((1, 8, 4, 5), nhwc, (1, 2, 4, 4, 5)) == (0, 3, 4, 1, 2)
    assert reshaped((1, 8, 4, 5), nhwc, (1, 32, 5)) is None
    assert reshaped((1, 8, 1, 1), nhwc, (1, 8)) == (0, 1)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_reshaped_agrees_with_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5)))
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    count = int(np.prod(shape))
    new: list[int] = []
    while count > 1:
        d = data.draw(st.sampled_from([d for d in range(2, count + 1) if count % d == 0]))
        new.append(d)
        count //= d
    found = reshaped(shape, perm, tuple(new))
    if found is not None:
        x = np.arange(int(np.prod(shape))).reshape(shape)
        stored = np.ascontiguousarray(x.transpose(perm))
        assert np.array_equal(stored.reshape(tuple(new[a] for a in found)), x.reshape(new).transpose(found))


def test_open_shapes_are_compiled_as_they_arrive(tmp_path: Path) -> None:
    model = network([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 4)}, {})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    program = RUNTIME.load(model, 1, tmp_path)
    for rows in (1, 3):
        x = normal(rows, 4)
        assert np.array_equal(program.run([x])[0], np.maximum(x, 0))


def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = network([helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,ij->i")], {"x": (2, 2)}, {})
    unknown.graph.node[0].op_type, unknown.graph.node[0].domain = "Nope", "nowhere"
    del unknown.graph.node[0].attribute[:]
    with pytest.raises(ToolError, match="Nope"):
        RUNTIME.load(unknown, 1, tmp_path)
    good = network([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 4)}, {})
    monkeypatch.setattr("hw.runtime.tvm.runtime.COMPILE_SECONDS", 0.2)
    with pytest.raises(ToolError, match="ran over"):
        RUNTIME.load(good, 1, tmp_path)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ToolError, match="C\\+\\+ compiler"):
        RUNTIME.load(good, 1, tmp_path)


def test_fixed_shapes_refuse_another_rank() -> None:
    from deploy.errors import UserError

    with pytest.raises(UserError, match="axes"):
        fixed(network([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 4)}, {}), [(1, 4, 4)])


def test_programs_with_different_threads_take_turns(tmp_path: Path) -> None:
    """TVM's pool belongs to the process: the second program must get its two threads, and the first none of them."""
    import os
    import time

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    model = network(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        {"x": (1, 128, 56, 56)},
        {"w": normal(256, 128, 3, 3)},
    )
    programs = {}
    for threads in (1, 2):
        place = tmp_path / str(threads)
        place.mkdir()
        programs[threads] = RUNTIME.load(model, threads, place)
    x = normal(1, 128, 56, 56)
    share = {}
    for threads in (1, 2, 1, 2):
        programs[threads].run([x])
        wall, used = time.perf_counter(), time.process_time()
        for _ in range(20):
            programs[threads].run([x])
        share[threads] = (time.process_time() - used) / (time.perf_counter() - wall)
    assert share[1] < 1.2 and share[2] > 1.2 * share[1], share
    assert np.array_equal(programs[1].run([x])[0], programs[2].run([x])[0])


@pytest.mark.parametrize("op", ["Erf", "Tanh", "Sigmoid", "Gelu", "Exp"])
def test_fast_functions_keep_their_bound(op: str) -> None:
    """The polynomials in place of libm: at most 1e-6 from the exact value, exp relative to it."""
    from scipy.special import erf

    x = np.concatenate([np.linspace(-30, 30, 40001), np.linspace(-1e-3, 1e-3, 2001)]).astype(np.float32)[None]
    wide = x.astype(np.float64)
    exact = {
        "Erf": erf(wide), "Tanh": np.tanh(wide), "Sigmoid": 1 / (1 + np.exp(-wide)), "Gelu": wide * (1 + erf(wide / 2**0.5)) / 2, "Exp": np.exp(wide),
    }[op]  # fmt: skip
    got, _ = run(network([helper.make_node(op, ["x"], ["y"])], {"x": x.shape}, {}), [x])
    error = np.abs(got - exact) / (exact if op == "Exp" else np.maximum(1, np.abs(exact)))
    assert error.max() <= 1e-6
