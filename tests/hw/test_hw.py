"""Latency method, runtimes, kernel rewrites, work counts, the profile stage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import ToolError, UserError
from deploy.inputs import InputSpec, examples
from export import onnxfile
from export.parity import session
from hw import latency, work
from hw.candidates import Candidate, compare, strays
from hw.memory import memory
from hw.profile import choose
from hw.runtime import ort, ort_kernels, runtimes
from hw.runtime.base import LayerTime
from tests.conftest import TEST, deploy


def _busy(ms: float) -> None:
    end = time.perf_counter() + ms / 1e3
    while time.perf_counter() < end:
        pass


def test_ratio_and_its_interval() -> None:
    found = latency.measure({"a": lambda: _busy(1.0), "b": lambda: _busy(0.5), "same": lambda: _busy(1.0)}, "a", 100)
    assert (
        found["b"].ratio == pytest.approx(2.0, rel=0.1) and found["b"].ratio_low > 1 and found["b"].verdict == "faster"
    )
    assert found["b"].ratio_low <= found["b"].ratio <= found["b"].ratio_high
    assert found["same"].ratio == pytest.approx(1.0, rel=0.05) and found["a"].samples == 100
    assert found["a"].min_ms <= found["a"].p50_ms <= found["a"].p90_ms <= found["a"].p99_ms


def test_slower_is_never_called_faster() -> None:
    slow = latency.Latency(100, 1, 1, 1, 1, 1, 0.6, 0.5, 0.7, False)
    unsure = latency.Latency(100, 1, 1, 1, 1, 1, 1.02, 0.98, 1.05, False)
    fast = latency.Latency(100, 1, 1, 1, 1, 1, 1.5, 1.4, 1.6, False)
    assert (slow.verdict, unsure.verdict, fast.verdict) == ("slower", "no difference shown", "faster")
    base, other = (Candidate(n, "onnxruntime", onnx.ModelProto(), program=object()) for n in ("base", "other"))  # type: ignore[arg-type]
    base.accuracy, other.accuracy = {"percent": 95.0}, {"percent": 94.5}
    for figure, chosen in ((slow, "base"), (unsure, "base"), (fast, "other")):
        assert choose([base, other], base, {"base": fast, "other": figure}, 1.0, True)[0] == chosen
    other.accuracy = {"percent": 93.0}
    name, why = choose([base, other], base, {"base": fast, "other": fast}, 1.0, True)
    assert name == "base" and "loses 2.00 points" in why


def test_few_samples_are_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        latency.measure({"a": lambda: None}, "a", 99)


def _conv_model(
    channels: int, out: int, size: int, kernel: int, stride: int, pad: int, seed: int, int4: bool
) -> onnx.ModelProto:
    """Quantize -> Dequantize -> Conv (narrow integer weights) -> Quantize -> Dequantize."""
    rng = np.random.default_rng(seed)
    high = 7 if int4 else 127
    values = rng.integers(-high, high + 1, (out, channels, kernel, kernel)).astype(np.int8)
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.INT4) if int4 else np.int8
    init = [
        numpy_helper.from_array(values.astype(dtype), "w"),
        *[numpy_helper.from_array(np.asarray(v, t), n) for n, v, t in (
            ("xs", 0.02, np.float32), ("xz", 128, np.uint8), ("ws", np.full(out, 0.01), np.float32), ("wz", np.zeros(out), np.int8),
            ("ys", 0.05 * kernel, np.float32), ("yz", 128, np.uint8))],
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "d"),
        *([helper.make_node("Cast", ["w"], ["w8"], "cast", to=TensorProto.INT8)] if int4 else []),
        helper.make_node("DequantizeLinear", ["w8" if int4 else "w", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "conv", strides=[stride] * 2, pads=[pad] * 4),
        helper.make_node("QuantizeLinear", ["y", "ys", "yz"], ["yq"], "yq"),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["out"], "yd"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, out, None, None])], init,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 4), out=st.sampled_from([8, 16]), half=st.integers(4, 9), kernel=st.integers(1, 7), pad=st.integers(0, 3), int4=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_stem_rewrite_is_exact(
    channels: int, out: int, half: int, kernel: int, pad: int, int4: bool, seed: int
) -> None:
    model = _conv_model(channels, out, 2 * half, kernel, 2, min(pad, kernel // 2), seed, int4)
    rewritten = ort_kernels.stem(model)
    if rewritten is None:
        return
    onnx.checker.check_model(rewritten)
    x = np.random.default_rng(seed).standard_normal((1, channels, 2 * half, 2 * half)).astype(np.float32)
    a, b = (session(m, 1).run(None, {"x": x})[0] for m in (model, rewritten))
    assert np.array_equal(a, b) and np.ptp(a) > 0


def test_stem_rewrite_happens_on_the_usual_stems() -> None:
    for size, kernel, pad in ((224, 7, 3), (224, 3, 1), (32, 4, 1)):
        assert ort_kernels.stem(_conv_model(3, 8, size, kernel, 2, pad, 0, False)) is not None
    assert ort_kernels.stem(_conv_model(3, 8, 32, 3, 1, 1, 0, False)) is None, "stride 1"
    assert ort_kernels.stem(_conv_model(5, 8, 32, 3, 2, 1, 0, False)) is None, "five channels"
    assert ort_kernels.stem(_conv_model(3, 8, 33, 3, 2, 1, 0, False)) is None, "odd size"


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(2, 9),
    out=st.sampled_from([8, 16]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    int4=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matrix_rewrite_is_exact(channels: int, out: int, kernel: int, stride: int, int4: bool, seed: int) -> None:
    model = _conv_model(channels, out, 10, kernel, stride, kernel // 2, seed, int4)
    assert ort_kernels.convolutions(model) == ["conv"]
    rewritten = ort_kernels.matrix(model, ["conv"])
    onnx.checker.check_model(rewritten)
    x = np.random.default_rng(seed).standard_normal((1, channels, 10, 10)).astype(np.float32)
    a, b = (session(m, 1).run(None, {"x": x})[0] for m in (model, rewritten))
    assert np.array_equal(a, b) and np.ptp(a) > 0


def test_full_range_weights_are_left_alone() -> None:
    model = _conv_model(4, 8, 8, 3, 1, 1, 0, False)
    tensor = next(i for i in model.graph.initializer if i.name == "w")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = -128
    tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    assert ort_kernels.convolutions(model) == []


@pytest.mark.parametrize("name", sorted(n for n, r in runtimes().items() if not r.missing()))
@pytest.mark.parametrize("file", ["float.onnx", "model.onnx"])
def test_every_runtime_computes_the_same(name: str, file: str, fashion_run: Path, tmp_path: Path) -> None:
    """The acceptance test of a runtime: float to 1e-5, the integer file to the bit or one step of a rounding tie."""
    model = onnxfile.load(fashion_run / "export" / file)
    values = examples((InputSpec("input", (1, 1, 28, 28)),), 3)
    want = session(model).run(None, {"input": values[0]})[0]
    got = runtimes()[name].load(model, 1, tmp_path).run(values)[0]
    assert np.ptp(want) > 1
    assert np.abs(got - want).max() / np.abs(want).max() < (1e-5 if file == "float.onnx" else 2e-2)


def test_a_refusing_runtime_is_a_tool_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Nope", ["x"], ["y"], domain="nowhere")], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)], ir_version=10
    )
    with pytest.raises(ToolError, match="refuses"):
        runtimes()["onnxruntime"].load(model, 1, tmp_path)


def test_work_counts_known_networks(fashion_run: Path) -> None:
    """The demonstration network: 29,128,448 MACs by hand (28*28*(9*1*32 + 9*32*32) + ...), the same in both files."""
    expected = (
        28 * 28 * 9 * (1 * 32 + 32 * 32)
        + 14 * 14 * 9 * (32 * 64 + 64 * 64)
        + 7 * 7 * 9 * (64 * 128 + 128 * 128)
        + 128 * 10
    )
    for file in ("float.onnx", "model.onnx"):
        rows = work.count(onnxfile.load(fashion_run / "export" / file))
        assert sum(r.macs for r in rows) == expected == 29128448 and len(rows) == 7


def test_profile_of_the_demo(fashion_run: Path) -> None:
    record = json.loads((fashion_run / "profile" / "profile.json").read_text())
    names = list(record["candidates"])
    assert names[0] == "float32 on onnxruntime" and any(n.startswith("int4-stored static on") for n in names)
    for row in record["candidates"].values():
        assert row["latency"]["samples"] >= 100 and row["accuracy"]["percent"] > 93
    assert len(record["layers"]) == 7 and all(r["us"] > 0 and r["float_us"] > 0 for r in record["layers"])
    assert record["float_left"] == [] and record["integer"]
    chosen = record["candidates"][record["chosen"]]["latency"]
    assert record["chosen"] == names[0] or chosen["ratio_low"] > 1


def test_profile_auto_ships_what_it_chose(fashion_run: Path, tmp_path: Path) -> None:
    """Every runtime and thread count is measured, the choice is within the bound and shown to be faster, and what is shipped runs again."""
    place = tmp_path / "p"
    ran = deploy(
        "profile", str(fashion_run / "export"), "--runtime", "auto", "--threads", "2", "--samples", "100", "--eval", TEST, "--eval-samples", "256",
        "-o", str(place),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    record = json.loads((place / "profile.json").read_text())
    rows = record["candidates"]
    for runtime in ("onnxruntime", "tvm", "openvino"):
        assert {r["threads"] for r in rows.values() if r.get("runtime") == runtime} == {1, 2}
    chosen = rows[record["chosen"]]
    assert record["chosen"] == record["baseline"] or chosen["latency"]["ratio_low"] > 1
    assert rows[record["baseline"]]["accuracy"]["percent"] - chosen["accuracy"]["percent"] <= 1
    assert (place / "best.so").is_file() == (record["chosen_runtime"] == "tvm")
    assert deploy("verify", str(place)).code == 0
    assert deploy("report", str(place), "-o", str(tmp_path / "r")).code == 0


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tvm-cuda"])
def test_a_gpu_that_is_not_there_is_refused(name: str, fashion_run: Path, tmp_path: Path) -> None:
    if not runtimes()[name].missing():
        pytest.skip("there is a GPU")
    ran = deploy("profile", str(fashion_run / "export" / "float.onnx"), "--runtime", name, "-o", str(tmp_path / "p"))
    assert ran.code == 2 and "NVIDIA GPU" in ran.err and not (tmp_path / "p").exists()


def test_accuracy_with_a_fixed_batch_is_aligned(tmp_path: Path) -> None:
    """Batch 3 does not divide the evaluation batches: labels must stay beside their rows."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    labels = np.random.default_rng(0).integers(0, 4, 600)
    np.savez(tmp_path / "e.npz", x=np.eye(4, dtype=np.float32)[labels], y=labels)
    ran = deploy(
        "profile",
        str(tmp_path / "m.onnx"),
        "--eval",
        str(tmp_path / "e.npz"),
        "--samples",
        "100",
        "-o",
        str(tmp_path / "p"),
    )
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "p" / "manifest.json").read_text())["summary"]
    assert summary["candidates"]["float32 on onnxruntime"]["accuracy"]["percent"] == 100


def test_unmeasured_accuracy_is_not_called_zero_loss() -> None:
    fast = latency.Latency(100, 1, 1, 1, 1, 1, 1.5, 1.4, 1.6, False)
    base, other = (Candidate(n, "onnxruntime", onnx.ModelProto(), program=object()) for n in ("base", "other"))  # type: ignore[arg-type]
    base.accuracy = {"percent": 95.0}
    name, why = choose([base, other], base, {"base": fast, "other": fast}, 1.0, True)
    assert name == "base" and "not evaluated" in why


def test_large_weights_are_mapped(tmp_path: Path) -> None:
    """Above MAPPED bytes ONNX Runtime reads weights from a file beside the graph: the same results, and less memory of its own."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((1024, 1024)).astype(np.float32) / 32 for i in range(12)}
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}"]) for i in range(12)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1024))],
        [helper.make_tensor_value_info("x12", TensorProto.FLOAT, (1, 1024))], [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    x = rng.standard_normal((1, 1024)).astype(np.float32)
    assert model.ByteSize() > ort.MAPPED
    first, second = ort.RUNTIME.load(model, 1, tmp_path), ort.RUNTIME.load(model, 1, tmp_path)
    copied = ort.OrtProgram(model.SerializeToString(), 1, tmp_path)
    want = copied.run([x])[0]
    assert np.array_equal(first.run([x])[0], want) and np.array_equal(second.run([x])[0], want) and np.ptp(want) > 0
    assert len(list(tmp_path.rglob("mapped.bin"))) == 2
    held = memory(model, "onnxruntime", 1, [x])
    assert 0 <= held["held"] < held["peak"], held


@pytest.mark.parametrize(
    "got,want,integers,said",
    [
        ([1.0, 2.0], [1.0, 2.00001], False, ""),
        ([1.0, 2.02], [1.0, 2.0], False, "largest output"),
        ([1.0, 2.02], [1.0, 2.0], True, ""),
        ([2.0, 1.0], [1.0, 2.0], True, "signal to noise"),
        ([1.0, -np.inf], [1.00001, -np.inf], False, ""),
        ([1.0, np.nan], [1.00001, np.nan], False, ""),
        ([1.0, np.nan], [1.00001, 3.0], False, "no finite"),
        ([1.0, np.nan], [1.00001, 3.0], True, "no finite"),
        ([1.0, np.inf], [1.0, -np.inf], True, "no finite"),
        ([[1.0, 2.0]], [1.0, 2.0], False, "in place of"),
        ([], [], False, ""),
    ],
)
def test_what_strays(got: list[float], want: list[float], integers: bool, said: str) -> None:
    found = strays(np.asarray(got, np.float32), np.asarray(want, np.float32), integers)
    assert said in found and bool(found) == bool(said)


def test_integers_stray_by_their_number() -> None:
    classes = np.arange(100)
    assert not strays(np.where(classes == 5, 6, classes), classes, False) and strays(classes[::-1], classes, False)
    assert "int64" in strays(classes.astype(np.int32), classes, False)


def test_who_computes_something_else_leaves_the_race() -> None:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    plain = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], []))
    stored = helper.make_model(helper.make_graph([helper.make_node("QuantizeLinear", ["x", "s"], ["y"])], "g", [], []))

    class Fixed:
        def __init__(self, *y: np.ndarray) -> None:
            self.y = list(y)

        def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
            return self.y

        def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
            return []

    def left(model: onnx.ModelProto, *y: np.ndarray) -> str:
        rows = [
            Candidate("a", "onnxruntime", model, program=Fixed(x, x)),
            Candidate("b", "tvm", model, program=Fixed(*y)),
        ]
        compare(rows, [x])
        assert rows[0].program is not None and (rows[1].program is None) == bool(rows[1].error)
        return rows[1].error

    assert not left(plain, x, x + 1e-5) and "largest output" in left(plain, x, x * 1.01)
    assert not left(stored, x, x * 1.01) and "signal to noise" in left(stored, x, x[:, ::-1].copy())
    assert "number of outputs" in left(plain, x)


def test_a_missing_memory_figure_costs_no_profile(
    fashion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise ToolError("python failed with exit code -9")

    monkeypatch.setattr("hw.profile.memory", fails)
    place = tmp_path / "p"
    ran = deploy("profile", str(fashion_run / "export" / "float.onnx"), "--samples", "100", "-o", str(place))
    assert ran.code == 0, ran.err
    record = json.loads((place / "profile.json").read_text())
    assert record["memory_mb"] == {} and "exit code -9" in next(iter(record["memory_unmeasured"].values()))
    assert deploy("report", str(place), "-o", str(tmp_path / "r")).code == 0
    assert "was not measured" in (tmp_path / "r" / "report.html").read_text()
