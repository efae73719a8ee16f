"""`deploy profile` as a stage: candidates, their latency and accuracy, the layer table, the roofline, the choice."""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy import data
from deploy.arch import Preprocess
from deploy.errors import DeployError, ToolError, UserError
from deploy.inputs import InputSpec, examples, parse_inputs
from deploy.progress import track
from export import onnxfile, parity
from export.stage import FLOAT, RUNTIME, read_record
from hw import latency, work
from hw.config import ProfileConfig
from hw.layers import by_layer, layer_table
from hw.runtime import ort_kernels, runtimes
from hw.runtime.base import Program

BEST, RECORD, LIBRARY = "best.onnx", "profile.json", "best.so"
BASELINE = "float32 on onnxruntime"
_INTEGER = ("QLinear", "Integer", "QGemm", "DynamicQuantize", "QAttention", "Nhwc")


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
                f"the ONNX input {value.name!r} has open dimensions; give --input-shape {value.name}=1x3x224x224 with its real shape"
            )
        specs.append(InputSpec(value.name, (max(1, dims[0]) if dims else 1, *dims[1:]), kinds[tensor.elem_type]))
    return tuple(specs)


def _load(config: ProfileConfig) -> tuple[list[Candidate], tuple[InputSpec, ...], Preprocess, dict[str, Any]]:
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
    return build({"float32": model}), specs, Preprocess(), {}


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


def _start(candidates: Sequence[Candidate], values: list[np.ndarray], folder: Path) -> None:
    for index, item in enumerate(track(candidates, "loading runtimes")):
        place = folder / f"candidate{index}"
        place.mkdir(exist_ok=True)
        item.size = len(item.model.SerializeToString())
        try:
            more = {"database": item.database} if item.database else {}
            item.program = runtimes()[item.runtime].load(item.model, item.threads, place, **more)
            item.program.run(values)
        except ToolError as error:
            if item.name == BASELINE:
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


def _tuned_tiles(
    config: ProfileConfig, candidates: Sequence[Candidate], values: list[np.ndarray], folder: Path
) -> list[Candidate]:
    """TVM's candidates once more with tuned tiles; one whose tuning died is kept as a row that says so."""
    if not config.tune_seconds:
        return []
    from hw.runtime.tvm import RUNTIME, tune
    from hw.runtime.tvm.machine import host

    path = Path(config.tune_database or Path.home() / ".cache" / "deploy" / "tvm-tiles.json").absolute()
    tune.read(path, host())
    found: list[Candidate] = []
    for item in [c for c in candidates if c.runtime == "tvm" and c.program is not None]:
        extra = Candidate(item.name.replace(" on tvm", " tuned on tvm"), "tvm", item.model, item.threads, str(path))
        try:
            RUNTIME.tune(item.model, path, config.tune_seconds, folder)
        except ToolError as error:
            extra.error = str(error)
        else:
            place = folder / f"tuned{len(found)}"
            place.mkdir()
            _start([extra], values, place)
        found.append(extra)
    return found


def _accuracy(
    candidates: Sequence[Candidate], baseline: Candidate, batches: Sequence[data.Batch], specs: Sequence[InputSpec]
) -> None:
    """Top-1 percent where labelled and agreement with the baseline; signal to noise ratio for every candidate."""
    size = specs[0].shape[0]
    for item in [baseline, *[c for c in candidates if c is not baseline]]:
        if item.program is None:
            continue
        rows, wanted = [], []
        for batch in track(batches, f"accuracy of {item.name}"):
            for at in range(0, len(batch) - size + 1, size):
                rows.append(item.program.run([v[at : at + size] for v in batch.inputs])[0])
                wanted.append(np.zeros(0) if batch.labels is None else batch.labels[at : at + size])
        if not rows:
            raise UserError(f"--eval gives fewer samples than the model's batch of {size}; give more")
        item.outputs, labels = np.concatenate(rows), np.concatenate(wanted)
        reference = baseline.outputs
        if reference is None:
            continue
        item.accuracy = {
            "samples": float(len(item.outputs)),
            "sqnr_db": parity.sqnr([item.outputs.astype(np.float32)], [reference.astype(np.float32)]),
        }
        if item.outputs.ndim == 2 and item.outputs.shape[1] > 1:
            item.accuracy["agreement"] = float((data.top1(item.outputs) == data.top1(reference)).mean() * 100)
            if len(labels) == len(item.outputs):
                item.accuracy["percent"] = float((data.top1(item.outputs) == labels).mean() * 100)


def _drop(item: Candidate, baseline: Candidate) -> float | None:
    """Points lost against the baseline: of accuracy where labelled, else of agreement; None where neither was measured."""
    if "percent" in item.accuracy:
        return baseline.accuracy["percent"] - item.accuracy["percent"]
    return 100 - item.accuracy["agreement"] if "agreement" in item.accuracy else None


def choose(
    candidates: Sequence[Candidate],
    baseline: Candidate,
    times: dict[str, latency.Latency],
    max_drop: float,
    evaluated: bool,
) -> tuple[str, str]:
    """The fastest candidate that is shown to be faster and, where there is data, within the bound; else the baseline; and why."""
    others = [c for c in candidates if c.program is not None and c is not baseline]
    drops = {c.name: _drop(c, baseline) for c in others}

    def fits(name: str) -> bool:
        drop = drops[name]
        return not evaluated or (drop is not None and drop <= max_drop)

    faster = [c for c in others if fits(c.name) and times[c.name].ratio_low > 1]
    if faster:
        best = max(faster, key=lambda c: times[c.name].ratio)
        drop = drops[best.name]
        bound = (
            f"loses {drop:.2f} points (bound {max_drop:g})"
            if drop is not None
            else "accuracy not measured: give --eval"
        )
        return best.name, f"{times[best.name].ratio:.2f}x faster than float32, {bound}"
    missed = [c.name for c in others if not fits(c.name)]
    if missed:
        drop = drops[missed[0]]
        said = f"loses {drop:.2f} points, over the bound {max_drop:g}" if drop is not None else "was not evaluated"
        return baseline.name, f"{missed[0]} {said}"
    return baseline.name, "no candidate is shown to be faster"


def run_stage(config: ProfileConfig, folder: Path) -> dict[str, Any]:
    """Measure; write `profile.json` and the chosen file as `best.onnx`; returns the summary."""
    if config.samples < latency.MIN_SAMPLES:
        raise UserError(f"--samples {config.samples} is too few to report; give at least {latency.MIN_SAMPLES}")
    if config.remote:
        from hw.native.remote import profile

        return profile(config, folder)
    candidates, specs, preprocess, record = _load(config)
    for item in candidates:
        wanted = [
            i.name for i in item.model.graph.input if i.name not in {t.name for t in item.model.graph.initializer}
        ]
        if len(wanted) != len(specs):
            raise UserError(
                f"the model takes {len(wanted)} inputs ({', '.join(wanted)}), --input-shape names {len(specs)}; name them all"
            )
    values = examples(specs, config.seed)
    batches = (
        data.load(
            config.eval,
            specs,
            preprocess,
            limit=config.eval_samples,
            batch=256,
            labels=True,
            flag="--eval",
            seed=config.seed,
        )
        if config.eval
        else []
    )
    with tempfile.TemporaryDirectory() as scratch:
        _start(candidates, values, Path(scratch))
        baseline = candidates[0]
        if config.tune:
            for item in [
                c
                for c in candidates
                if c.runtime == "onnxruntime" and c.program is not None and c.model is not baseline.model
            ]:
                extra = tuned(item, values, Path(scratch))
                _start(extra, values, Path(scratch))
                candidates += [e for e in extra if _same(e, item, values)]
        candidates += _tuned_tiles(config, candidates, values, Path(scratch))
        running = [c for c in candidates if c.program is not None]
        times = latency.measure(
            {c.name: _call(c, values) for c in running}, baseline.name, config.samples, config.threads
        )
        if batches:
            _accuracy(candidates, baseline, batches, specs)
        chosen_name, why = choose(candidates, baseline, times, config.max_drop, bool(batches))
        chosen = next(c for c in candidates if c.name == chosen_name)
        shown = chosen if chosen.runtime == "onnxruntime" else baseline
        if shown.program is None or baseline.program is None:
            raise DeployError(f"{shown.name} did not start")
        kernels = getattr(chosen.program, "record", {}).get("kernels", [])
        library = getattr(chosen.program, "library", None)
        if library is not None:
            shutil.copy(library, folder / LIBRARY)
        layers, left, by_op = layer_table(shown.model, shown.program, baseline.model, baseline.program, values)
    peak = work.peaks(config.threads)
    (folder / BEST).write_bytes(chosen.model.SerializeToString())
    rows = {
        c.name: (
            {"error": c.error}
            if c.program is None
            else {
                "latency": times[c.name].to_json(),
                "bytes": c.size,
                "accuracy": c.accuracy,
                "runtime": c.runtime,
                "threads": c.threads,
            }
        )
        for c in candidates
    }
    summary = {
        "notice": record.get("notice", ""),
        "baseline": baseline.name,
        "candidates": rows,
        "chosen": chosen.name,
        "chosen_runtime": chosen.runtime,
        "chosen_threads": chosen.threads,
        "why": why,
        "conditions": {
            **latency.conditions(config.threads),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        },
    }
    detail = {
        **summary,
        "layers": layers,
        "float_left": left,
        "by_operator_us": by_op,
        "peaks": asdict(peak),
        "kernels": kernels,
        "integer": _is_integer(by_op),
        "inputs": [s.to_json() for s in specs],
    }
    (folder / RECORD).write_text(json.dumps(detail, indent=1) + "\n")
    return summary


def _is_integer(by_op: dict[str, float]) -> bool:
    return any(op.startswith(_INTEGER) for op in by_op)


def _call(item: Candidate, values: list[np.ndarray]) -> Any:
    program = item.program
    if program is None:
        raise DeployError(f"{item.name} did not start")
    return lambda: program.run(values)


def _same(extra: Candidate, item: Candidate, values: list[np.ndarray]) -> bool:
    """A tuned candidate must give the same numbers, to the bit."""
    if extra.program is None or item.program is None:
        return False
    return all(np.array_equal(a, b) for a, b in zip(extra.program.run(values), item.program.run(values), strict=True))


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the chosen file runs and varies on fresh inputs."""
    record = json.loads((folder / RECORD).read_text())
    if "remote" in record:
        return [("the board gave this computer's results", record["difference"] < 0.02, record["remote"])]
    specs = tuple(InputSpec.from_json(r) for r in record["inputs"])
    with tempfile.TemporaryDirectory() as scratch:
        runtime = runtimes()[record.get("chosen_runtime", "onnxruntime")]
        if runtime.missing():
            raise UserError(f"{folder} ships a model for {runtime.name}: {runtime.missing()}")
        program = runtime.load(onnxfile.load(folder / BEST), record.get("chosen_threads", 1), Path(scratch))
        outputs = [program.run(row)[0] for row in parity.fresh(specs, 2, seed + 2)]
    return [("best.onnx runs, outputs vary", parity.varies(outputs), record["chosen"])]
