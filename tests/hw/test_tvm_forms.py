"""Forms of operators that an importer easily gets wrong, each against ONNX Runtime without its optimisations (or the ONNX reference where it has none)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploy.errors import ToolError, UserError
from hw.runtime.tvm.runtime import RUNTIME
from tests.hw.test_tvm import network, normal, run

Weights = dict[str, Any]
X = {"s": np.float32(0.02), "z": np.uint8(120)}
N = helper.make_node


def read(x: str = "x") -> list[Any]:
    """x -> xd, through u8."""
    return [N("QuantizeLinear", [x, "s", "z"], ["xq"]), N("DequantizeLinear", ["xq", "s", "z"], ["xd"])]


def written(y: str) -> list[Any]:
    return [N("QuantizeLinear", [y, "s", "z"], ["yq"]), N("DequantizeLinear", ["yq", "s", "z"], ["y"])]


def ints(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(-127, 128, shape).astype(np.int8)


def per(count: int) -> Weights:
    return {**X, "sc": (0.003 + 0.002 * np.arange(count)).astype(np.float32), "zc": np.zeros(count, np.int8)}


def against(model: onnx.ModelProto, values: list[np.ndarray], bound: float, reference: bool = False) -> None:
    names = [i.name for i in model.graph.input]
    if reference:
        want = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))[0]
    else:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        want = session.run(None, dict(zip(names, values, strict=True)))[0]
    got, _ = run(model, values)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert not np.isnan(got).any() and np.abs(got.astype(np.float64) - want).max() <= bound * max(
        1.0, float(np.abs(want).max())
    )


LINE = (1, 8, 9)
INTEGER_FORMS: dict[str, tuple[list[Any], tuple[int, ...], Weights]] = {
    "conv of a line": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=0), N("Conv", ["xd", "wd"], ["c"]), *written("c")],
        LINE, {**per(12), "w": ints(12, 8, 3)},
    ),
    "product, scales along the sum": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=0), N("MatMul", ["xd", "wd"], ["y"])],
        (5, 8), {**per(8), "w": ints(8, 8)},
    ),
    "gemm, scales along the sum": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=1), N("Gemm", ["xd", "wd"], ["y"], transB=1)],
        (5, 8), {**per(8), "w": ints(8, 8)},
    ),
    "conv, scales along the inputs": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"]), N("Conv", ["xd", "wd"], ["y"])],
        (1, 8, 6, 6), {**per(8), "w": ints(12, 8, 3, 3)},
    ),
    "bias of another scale": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=0), N("DequantizeLinear", ["b", "bs"], ["bd"]), N("Conv", ["xd", "wd", "bd"], ["y"])],
        (1, 8, 6, 6), {**per(4), "w": ints(4, 8, 3, 3), "b": np.asarray([1000, -1000, 500, 0], np.int32), "bs": np.float32(0.001)},
    ),
    "gemm, a scale too small for its bias": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=1), N("Gemm", ["xd", "wd", "b"], ["y"])],
        (5, 8), {**X, "sc": np.asarray([0.02, 1e-9, 0.02, 0.02], np.float32), "zc": np.zeros(4, np.int8), "w": ints(8, 4), "b": np.ones(4, np.float32)},
    ),
    "gemm, a bias per row": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=1), N("Gemm", ["xd", "wd", "b"], ["y"])],
        (12, 8), {**per(12), "w": ints(8, 12), "b": normal(12, 1)},
    ),
    "gemm, a bias per output": (
        [*read(), N("DequantizeLinear", ["w", "sc", "zc"], ["wd"], axis=1), N("Gemm", ["xd", "wd", "b"], ["y"])],
        (5, 8), {**per(12), "w": ints(8, 12), "b": normal(5, 12)},
    ),
    "normalisation with stored parameters": (
        [*read(), *(N("DequantizeLinear", [n, "ps"], [f"{n}d"]) for n in ("g", "b", "m", "v")), N("BatchNormalization", ["xd", "gd", "bd", "md", "vd"], ["y"])],
        (1, 4, 5, 5), {**X, "ps": np.float32(0.1), **{n: np.arange(3, 7).astype(np.int8) for n in "gbmv"}},
    ),
    "signed without a zero point": (
        [N("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.INT8), N("DequantizeLinear", ["q", "s"], ["y"])], (4, 8), {"s": np.float32(0.02)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", INTEGER_FORMS)
def test_integer_forms(form: str) -> None:
    """0.021: one step where a sum ties; what these forms did wrong was off by far more."""
    nodes, shape, weights = INTEGER_FORMS[form]
    model = network(nodes, {"x": shape}, {k: np.asarray(v) for k, v in weights.items()})
    if "signed" in form:
        model.opset_import[0].version = 21
    against(model, [normal(*shape)], 0.021)


def sizes(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def factors(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


FLOAT_FORMS: dict[str, tuple[list[Any], dict[str, tuple[int, ...]], Weights]] = {
    "gather from the end": ([N("Gather", ["x", "i"], ["y"])], {"x": (5, 4)}, {"i": sizes(-1, 2)[None]}),
    "gemm, a bias that was turned": (
        [N("Transpose", ["c"], ["t"], perm=[1, 0]), N("Gemm", ["x", "w", "t"], ["y"])], {"x": (5, 4), "c": (5, 5)}, {"w": normal(4, 5)},
    ),
    "halved with odd sizes": ([N("Resize", ["x", "", "f"], ["y"], mode="linear")], {"x": (1, 2, 5, 7)}, {"f": factors(1, 1, 0.5, 0.5)}),
    "cubic": ([N("Resize", ["x", "", "f"], ["y"], mode="cubic")], {"x": (1, 2, 5, 7)}, {"f": factors(1, 1, 1.7, 2.3)}),
    "antialiased": ([N("Resize", ["x", "", "", "o"], ["y"], mode="linear", antialias=1)], {"x": (1, 2, 9, 8)}, {"o": sizes(1, 2, 4, 5)}),
    "nearest, rounded up": (
        [N("Resize", ["x", "", "f"], ["y"], mode="nearest", nearest_mode="ceil", coordinate_transformation_mode="asymmetric")],
        {"x": (1, 2, 5, 6)}, {"f": factors(1, 1, 1.5, 1.3)},
    ),
    "resized to sizes, scales empty": (
        [N("Resize", ["x", "", "f", "o"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"x": (1, 2, 5, 6)}, {"f": factors(), "o": sizes(1, 2, 11, 9)},
    ),
    "a size that the scale leaves": (
        [N("Resize", ["x", "", "f"], ["y"], mode="linear")], {"x": (1, 1, 4, 5)}, {"f": factors(1, 1, 2, 1.15)},
    ),
    "scales that change no size": ([N("Resize", ["x", "", "f"], ["y"], mode="linear")], {"x": (1, 1, 4, 5)}, {"f": factors(1, 1, 1.1, 1.15)}),
    "sum over no axes is over all": ([N("ReduceSum", ["x", "a"], ["y"], keepdims=0)], {"x": (3, 4)}, {"a": sizes()}),
    "power with an integer": ([N("Pow", ["x", "e"], ["y"])], {"x": (3, 4)}, {"e": np.asarray(2, np.int64)}),
    "scale of one number": ([N("LayerNormalization", ["x", "w"], ["y"])], {"x": (3, 5)}, {"w": factors(1.5)}),
    "scattered": ([N("ScatterElements", ["x", "i", "u"], ["y"], axis=1)], {"x": (2, 5)}, {"i": sizes(1, 3)[None].repeat(2, 0), "u": normal(2, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FLOAT_FORMS)
def test_float_forms(form: str) -> None:
    nodes, inputs, weights = FLOAT_FORMS[form]
    against(network(nodes, inputs, weights), [normal(*s, seed=i) for i, s in enumerate(inputs.values())], 2e-6)


def test_computed_indices_count_from_the_end(tmp_path: Path) -> None:
    model = network([N("Gather", ["table", "x"], ["y"])], {"x": (2,)}, {"table": normal(5, 4)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    found = RUNTIME.load(model, 1, tmp_path).run([sizes(-1, 2)])[0]
    assert np.array_equal(found, normal(5, 4)[[-1, 2]])


def test_grouped_scales_of_small_weights() -> None:
    """MatMulNBits with g_idx: which group each row belongs to."""
    nodes = [
        N("MatMulNBits", ["x", "b", "s", "", "g"], ["y"], domain="com.microsoft", K=32, N=4, bits=4, block_size=16)
    ]
    rng = np.random.default_rng(0)
    weights = {
        "b": rng.integers(0, 256, (4, 2, 8)).astype(np.uint8), "s": rng.random(8).astype(np.float32), "g": np.asarray([1, 0] * 16, np.int32),
    }  # fmt: skip
    model = network(nodes, {"x": (3, 32)}, weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    against(model, [normal(3, 32)], 1e-5)


def test_integer_convolution_with_a_zero_point_per_channel() -> None:
    nodes = [N("Cast", ["x"], ["q"], to=TensorProto.UINT8), N("ConvInteger", ["q", "w", "xz", "wz"], ["i"]), N("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    weights = {"w": ints(5, 4, 3, 3), "xz": np.asarray(9, np.uint8), "wz": np.asarray([1, -2, 3, 0, 5], np.int8)}
    values = np.random.default_rng(1).integers(0, 256, (1, 4, 6, 6)).astype(np.float32)
    model = network(nodes, {"x": (1, 4, 6, 6)}, weights)
    got, _ = run(model, [values])
    wide = weights["w"].astype(np.int64) - weights["wz"].reshape(-1, 1, 1, 1)
    windows = np.lib.stride_tricks.sliding_window_view(values[0].astype(np.int64) - 9, (3, 3), (1, 2))
    assert np.array_equal(got[0], np.einsum("chwij,ocij->ohw", windows, wide))


def test_a_quantized_file_with_functions() -> None:
    body = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [N("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model = network(
        [*read(), N("Twice", ["xd"], ["y"], domain="mine")], {"x": (3, 4)}, {k: np.asarray(v) for k, v in X.items()}
    )
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    against(model, [normal(3, 4)], 1e-6)


@pytest.mark.parametrize(
    "nodes,weights",
    [
        (
            [
                N("SequenceConstruct", ["k", "k"], ["q"]),
                N("ConcatFromSequence", ["q"], ["c"], axis=1),
                N("Add", ["x", "c"], ["y"]),
            ],
            {"k": normal(1, 2, 1, 1)},
        ),
        ([N("ConvTranspose", ["x", "w"], ["y"], output_shape=[9, 9], strides=[2, 2])], {"w": normal(4, 4, 3, 3)}),
        ([N("LayerNormalization", ["x", "g"], ["n", "y"])], {"g": normal(5)}),
        ([N("MaxPool", ["x"], ["m", "i"], kernel_shape=[2, 2]), N("Cast", ["i"], ["y"], to=TensorProto.FLOAT)], {}),
        ([N("Resize", ["x", "", "", "o"], ["y"], keep_aspect_ratio_policy="not_larger")], {"o": sizes(1, 4, 9, 7)}),
    ],
)
def test_what_would_be_wrong_is_refused(nodes: list[Any], weights: Weights) -> None:
    with pytest.raises(ToolError, match="onnxruntime"):
        run(network(nodes, {"x": (1, 4, 5, 5)}, weights), [normal(1, 4, 5, 5)])


def test_numbers_without_axes_and_inputs_of_another_kind(tmp_path: Path) -> None:
    model = network([N("Mul", ["x", "f"], ["y"])], {"x": (3,), "f": ()}, {})
    program = RUNTIME.load(model, 1, tmp_path)
    x = normal(3)
    assert np.array_equal(program.run([x, np.asarray(2, np.float32)])[0], 2 * x)
    with pytest.raises(UserError, match="takes 2 inputs"):
        program.run([x])
    with pytest.raises(UserError, match="float64"):
        program.run([x.astype(np.float64), np.asarray(2, np.float32)])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UserError, match="no shape"):
        RUNTIME.load(model, 1, tmp_path)


@pytest.mark.parametrize("opset,op", [(9, "Upsample"), (10, "Resize"), (11, "Resize"), (12, "Resize")])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizes_of_older_files(opset: int, op: str, mode: str) -> None:
    inputs = ["x", "roi", "f"] if opset > 10 else ["x", "f"]
    weights = {"f": factors(1, 1, 2, 1.5), **({"roi": factors()} if opset > 10 else {})}
    model = network([N(op, inputs, ["y"], mode=mode)], {"x": (1, 2, 5, 6)}, weights)
    model.opset_import[0].version = opset
    against(model, [normal(1, 2, 5, 6)], 2e-6)


def test_what_is_far_out_is_clipped_to_its_side() -> None:
    x = np.asarray([[-np.inf, -3.4e38, -1e38, -1e9, -1.0, 0.0, 1.0, 1e9, 1e38, 3.4e38, np.inf]], np.float32)
    for kind in (np.uint8, np.int8):
        weights = {"s": np.float32(0.05), "z": np.asarray(3, kind)}
        nodes = [N("QuantizeLinear", ["x", "s", "z"], ["q"]), N("DequantizeLinear", ["q", "s", "z"], ["y"])]
        against(network(nodes, {"x": x.shape}, {k: np.asarray(v) for k, v in weights.items()}), [x], 0)


def test_ranges_of_tiny_numbers() -> None:
    nodes = [N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), N("Cast", ["q"], ["y"], to=TensorProto.FLOAT)]
    for top in (1e-37, 1e-31, 1e-20):
        against(network(nodes, {"x": (1, 16)}, {}), [np.linspace(0, top, 16, dtype=np.float32)[None]], 0)


def test_outputs_are_the_callers_own(tmp_path: Path) -> None:
    """Inputs, constants and other outputs seen under another name or shape: a later run must not write into what an earlier one gave."""
    nodes = [
        N("Identity", ["x"], ["a"]), N("Reshape", ["x", "flat"], ["b"]), N("Identity", ["k"], ["c"]), N("Relu", ["x"], ["d"]),
        N("Reshape", ["d", "flat"], ["e"]),
    ]  # fmt: skip
    model = network(nodes, {"x": (2, 3)}, {"flat": sizes(6), "k": np.ones(3, np.float32)}, "a")
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "bcde")
    program = RUNTIME.load(model, 1, tmp_path)
    first = program.run([normal(2, 3)])
    kept = [f.copy() for f in first]
    first[2][:] *= 5
    first[4][:] = 9
    second = program.run([normal(2, 3, seed=1)])
    assert (
        np.array_equal(second[2], np.ones(3))
        and np.array_equal(first[0], kept[0])
        and np.array_equal(first[1], kept[1])
    )
    assert np.array_equal(first[3], kept[3]) and not np.array_equal(first[0], second[0])


def test_a_program_on_two_threads(tmp_path: Path) -> None:
    program = RUNTIME.load(
        network([N("MatMul", ["x", "w"], ["m"]), N("Relu", ["m"], ["y"])], {"x": (64, 64)}, {"w": normal(64, 64)}),
        1,
        tmp_path,
    )
    inputs = [normal(64, 64, seed=i) for i in range(4)]
    want = [program.run([x])[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got in (list(pool.map(lambda x: program.run([x])[0], inputs)) for _ in range(20)):
            assert all(map(np.array_equal, got, want))


def test_constants_in_types_that_numpy_borrows() -> None:
    import ml_dtypes

    nodes = [*read(), N("Cast", ["k"], ["f"], to=TensorProto.FLOAT), N("Add", ["xd", "f"], ["y"])]
    weights = {**{k: np.asarray(v) for k, v in X.items()}, "k": normal(4).astype(ml_dtypes.bfloat16)}
    against(network(nodes, {"x": (3, 4)}, weights), [normal(3, 4)], 1e-6)
