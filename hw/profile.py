"""`deploy profile` as a stage: candidates, their latency and accuracy, the layer table, the roofline, the choice."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deploy import data
from deploy.errors import DeployError, ToolError, UserError
from deploy.inputs import InputSpec, examples
from deploy.progress import track
from export import onnxfile, parity
from hw import latency, work
from hw.candidates import Candidate, compare, load, other_kernels, start, tuned_tiles
from hw.config import ProfileConfig
from hw.layers import layer_table
from hw.memory import memory
from hw.runtime import runtimes

SHIPPED = 1e-3  # integers are equal, floats are summed in another order
BEST, RECORD, LIBRARY = "best.onnx", "profile.json", "best.so"
_INTEGER = ("QLinear", "Integer", "QGemm", "DynamicQuantize", "QAttention", "Nhwc")


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
        return (
            best.name,
            f"{times[best.name].ratio:.2f}x faster than {'float32' if baseline.name.startswith('float32 ') else baseline.name}, {bound}",
        )
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
    candidates, specs, preprocess, record = load(config)
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
        start(candidates, values, Path(scratch))
        baseline = candidates[0]
        if config.tune:
            candidates += other_kernels(candidates, values, Path(scratch))
        tiles, tuning = tuned_tiles(config, candidates, values, Path(scratch))
        candidates += tiles
        compare(candidates, values)
        running = [c for c in candidates if c.program is not None]
        device = any(
            c.runtime in ("cuda", "tensorrt", "tvm-cuda") for c in running
        )  # this thread waits for it: wall time counts
        times = latency.measure(
            {c.name: _call(c, values) for c in running}, baseline.name, config.samples, 2 if device else config.threads
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
        held: dict[str, dict[str, float]] = {}
        unmeasured: dict[str, str] = {}
        for item in (baseline, chosen):
            try:
                held[item.name] = memory(item.model, item.runtime, item.threads, values, item.database)
            except ToolError as error:
                unmeasured[item.name] = str(error)
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
        "memory_mb": held,
        **({"memory_unmeasured": unmeasured} if unmeasured else {}),
        **({"tuning": tuning} if tuning else {}),
        "conditions": latency.conditions(config.threads),
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
        model, threads = onnxfile.load(folder / BEST), record.get("chosen_threads", 1)
        rows = parity.fresh(specs, 2, seed + 2)
        program = runtime.load(model, threads, Path(scratch))
        outputs = [program.run(row)[0] for row in rows]
        found = [("best.onnx runs, outputs vary", parity.varies(outputs), record["chosen"])]
        if (folder / LIBRARY).is_file():
            shipped: Any = runtime
            program = shipped.load(model, threads, Path(scratch), library=folder / LIBRARY)
            got = [program.run(row)[0] for row in rows]
            far = parity.relative(got, outputs)
            found.append(("best.so computes what best.onnx does", far <= SHIPPED, f"{far:.1e} of the largest output"))
    return found
