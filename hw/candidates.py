"""What `deploy profile` races: files, runtimes, threads and tuned kernels; which of them start, and which compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.arch import Preprocess
from deploy.errors import ToolError, UserError
from deploy.inputs import InputSpec, parse_inputs
from deploy.progress import track
from export import onnxfile, parity
from export.stage import FLOAT, RUNTIME, read_record
from hw.config import ProfileConfig
from hw.layers import by_layer
from hw.runtime import ort_kernels, runtimes
from hw.runtime.base import Program

FLOAT_BOUND, NOISE_DB, DIFFERENT = (
    1e-3,
    10.0,
    0.1,
)  # beyond these a runtime computes something else: faults, not rounding


@dataclass
class Candidate:
    """One file on one runtime with so many threads."""

    name: str
    runtime: str
    model: onnx.ModelProto
    threads: int = 1
    database: str = ""  # of TVM's tuned tiles
    program: Program | None = None
    error: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)
    outputs: np.ndarray | None = None
    size: int = 0


def specs_of(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Input specs from an ONNX file. Raises UserError where a dimension other than the batch is open or a type is not taken."""
    kinds = {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.INT64: "int64",
        onnx.TensorProto.INT32: "int32",
        onnx.TensorProto.BOOL: "bool",
    }
    stored = {i.name for i in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type not in kinds:
            raise UserError(
                f"the ONNX input {value.name!r} has a type that is not float32, int64, int32 or bool; convert the model"
            )
        if any(d < 1 for d in dims[1:]):
            raise UserError(
                f"the ONNX input {value.name!r} has open dimensions; give --input-shape {value.name}=1x3x224x224 with its real shape (deploy native: an export folder)"
            )
        specs.append(InputSpec(value.name, (max(1, dims[0]) if dims else 1, *dims[1:]), kinds[tensor.elem_type]))
    return tuple(specs)


def load(config: ProfileConfig) -> tuple[list[Candidate], tuple[InputSpec, ...], Preprocess, dict[str, Any]]:
    path = Path(config.model)
    available = runtimes()
    every = config.runtime in ("all", "auto")
    chosen = list(available) if every else list(dict.fromkeys(["onnxruntime", config.runtime]))
    for name in chosen:
        if config.runtime == name and available[name].missing():
            raise UserError(available[name].missing())
    chosen = sorted((n for n in chosen if not available[n].missing()), key=lambda n: n != "onnxruntime")
    counts = sorted({1, config.threads}) if config.runtime == "auto" else [config.threads]

    def build(files: dict[str, onnx.ModelProto]) -> list[Candidate]:
        return [
            Candidate(f"{kind} on {runtime}{_threaded(count, config)}", runtime, model, count)
            for runtime in chosen
            for kind, model in files.items()
            for count in counts[::-1]
        ]

    if path.is_dir():
        record = read_record(path)
        specs = tuple(InputSpec.from_json(r) for r in record["inputs"])
        files = {"float32": onnxfile.load(path / FLOAT)}
        if (path / RUNTIME).is_file():
            model = onnxfile.load(path / RUNTIME)
            files[_kind(model)] = model
        return build(files), specs, Preprocess.from_json(record["preprocess"]), record
    if path.suffix != ".onnx":
        raise UserError(f"{path} is neither an export folder nor an .onnx file; run deploy export first")
    model = onnxfile.load(path)
    specs = parse_inputs(config.input_shape) if config.input_shape else specs_of(model)
    return build({_kind(model).removesuffix(" compressed"): model}), specs, Preprocess(), {}


def _threaded(count: int, config: ProfileConfig) -> str:
    """What a candidate's name says of its threads: nothing where all have the same number; the baseline has as many as were asked for."""
    return "" if config.runtime != "auto" or count == config.threads else f", {count} thread{'s' if count > 1 else ''}"


def _kind(model: onnx.ModelProto) -> str:
    """What a compressed file is, from its operators and stored types."""
    ops = {n.op_type for n in model.graph.node}
    bits = "int4-stored" if any(i.data_type == onnx.TensorProto.INT4 for i in model.graph.initializer) else "int8"
    integers = any(
        i.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4)
        for i in model.graph.initializer
    )
    if not integers and not ops & {"QuantizeLinear", "DynamicQuantizeLinear"}:
        return "float32 compressed"
    if "QuantizeLinear" in ops and "DynamicQuantizeLinear" in ops:
        return f"{bits} static+dynamic"
    return (
        f"{bits} dynamic"
        if "DynamicQuantizeLinear" in ops
        else f"{bits} static"
        if "QuantizeLinear" in ops
        else f"{bits} weights"
    )


def start(candidates: Sequence[Candidate], values: list[np.ndarray], folder: Path) -> None:
    for index, item in enumerate(track(candidates, "loading runtimes")):
        place = folder / f"candidate{index}"
        place.mkdir(exist_ok=True)
        item.size = len(item.model.SerializeToString())
        try:
            more = {"database": item.database} if item.database else {}
            item.program = runtimes()[item.runtime].load(item.model, item.threads, place, **more)
            item.program.run(values)
        except ToolError as error:
            if index == 0:
                raise
            item.program, item.error = None, str(error)


def tuned(item: Candidate, values: list[np.ndarray], folder: Path) -> list[Candidate]:
    """Equivalent candidates through other kernels of ONNX Runtime, where the file has convolutions that allow them."""
    runtime, threads = runtimes()[item.runtime], item.threads
    model = ort_kernels.stem(item.model) or item.model
    names = ort_kernels.convolutions(model)
    if not names:
        return []
    direct = by_layer(runtime.load(model, threads, folder).layers(values, 15), model)
    product = by_layer(runtime.load(ort_kernels.matrix(model, names), threads, folder).layers(values, 15), model)
    layers = ort_kernels.choose_layers(names, direct, product)
    if not layers and model is item.model:
        return []
    kind = item.name.replace(" on ", f" tuned ({len(layers)} of {len(names)} convolutions by matrix product) on ")
    return [Candidate(kind, item.runtime, ort_kernels.matrix(model, layers), threads)]


def other_kernels(candidates: Sequence[Candidate], values: list[np.ndarray], folder: Path) -> list[Candidate]:
    """`tuned` for every compressed file on ONNX Runtime; only those that give the same numbers, to the bit."""
    found: list[Candidate] = []
    for item in candidates[1:]:
        if item.runtime != "onnxruntime" or item.program is None or item.model is candidates[0].model:
            continue
        extra = tuned(item, values, folder)
        start(extra, values, folder)
        want = item.program.run(values)
        for other in extra:
            if other.program is not None and all(map(np.array_equal, other.program.run(values), want)):
                found.append(other)
    return found


def tuned_tiles(
    config: ProfileConfig, candidates: Sequence[Candidate], values: list[np.ndarray], folder: Path
) -> tuple[list[Candidate], dict[str, Any]]:
    """TVM's candidates once more with tuned tiles, and how many workloads were tried and won. One whose tuning died is a row that says so; one to which no
    tuned tile applies is none. Raises UserError where TVM is not measured."""
    if not config.tune_seconds and not config.tune_database:
        return [], {}
    ours = [c for c in candidates if c.runtime == "tvm"]
    if not ours:
        raise UserError("--tune-seconds and --tune-database are about TVM; measure it with --runtime tvm, all or auto")
    from hw.runtime.tvm import RUNTIME, tune
    from hw.runtime.tvm.machine import host

    path = Path(config.tune_database or Path.home() / ".cache" / "deploy" / "tvm-tiles.json").absolute()
    tune.read(path, host())
    found: list[Candidate] = []
    said: dict[str, Any] = {}
    died: dict[int, str] = {}
    for index, item in enumerate([c for c in ours if c.program is not None]):
        extra = Candidate(item.name.replace(" on tvm", " tuned on tvm"), "tvm", item.model, item.threads, str(path))
        if config.tune_seconds and id(item.model) not in died:
            died[id(item.model)] = ""
            try:
                said[item.name] = RUNTIME.tune(item.model, path, config.tune_seconds, folder)
            except ToolError as error:
                died[id(item.model)] = str(error)
        extra.error = died.get(id(item.model), "")
        if not extra.error:
            place = folder / f"tuned{index}"
            place.mkdir()
            start([extra], values, place)
            if getattr(extra.program, "record", {}).get("tuned_tiles") == 0:
                continue
        found.append(extra)
    return found, said


def compare(candidates: Sequence[Candidate], values: list[np.ndarray]) -> None:
    """Every candidate computes what ONNX Runtime computes from the same file, or leaves the race with a sentence that says by how much it does not."""
    for item in candidates:
        first = next((c for c in candidates if c.model is item.model and c.runtime == "onnxruntime"), None)
        if item.program is None or first is None or first.program is None or first is item:
            continue
        got, want = item.program.run(values), first.program.run(values)
        integers = not _kind(item.model).startswith("float32")
        said = "another number of outputs" if len(got) != len(want) else ""
        for a, b in zip(got, want, strict=False):
            said = said or strays(a, b, integers)
        if said:
            item.program, item.error = None, f"computes something else than onnxruntime: {said}"


def strays(got: np.ndarray, want: np.ndarray, integers: bool) -> str:
    """How an output differs by more than rounding does, '' where it does not.

    Floats by the largest difference over the largest value; in files of integers (where a step of rounding may grow through a network) by signal to noise;
    outputs that are integers themselves by how many differ. Infinities and NaN must stand in the same places.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} in place of {want.dtype}{list(want.shape)}"
    if np.array_equal(got, want, equal_nan=got.dtype.kind == "f") or not got.size:
        return ""
    if got.dtype.kind != "f":
        share = float(np.mean(got != want))
        return f"{100 * share:.1f} % of an output's integers differ" if share > DIFFERENT else ""
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return "values that are no finite numbers, in other places"
    if integers:
        ratio = parity.sqnr([got[finite].astype(np.float32)], [want[finite].astype(np.float32)])
        return f"{ratio:.1f} dB signal to noise" if ratio < NOISE_DB else ""
    worst = parity.relative([got[finite]], [want[finite]])
    return f"off by {worst:.1e} of the largest output" if worst > FLOAT_BOUND else ""
