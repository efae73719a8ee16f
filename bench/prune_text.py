"""Pruning MiniLM without retraining: accuracy, likeness to the dense embeddings and latency, by method, with and without refit.

python -m bench.prune_text table [--seeds 0 1 2] [--data reuters-r8 20newsgroups lee]
python -m bench.prune_text latency
python -m bench.prune_text vtrans [--only faster fast full]
python -m bench.prune_text speed
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bench.common import BENCH, merge, save, stamp
from bench.texts import TOKENS, Classified, classifier, documents, embed, lee, minilm
from compress.prune.context import Context, located
from compress.prune.controls import to_multiples
from compress.prune.refit import refit
from compress.prune.search import rank
from compress.prune.size import shares
from compress.prune.slim import slim
from compress.prune.structure import Keep, describe

METHODS = ("optin", "optin_paper", "fisher", "activation", "random")
RATIOS = (0.6, 0.8, 0.5, 0.7)  # in the order of their weight
HEAD_DOCS, TEST_DOCS, CALIBRATION = 3000, 1000, 256
ROUND = 8


class Task:
    """One data set: how the encoder is measured on it, and its calibration samples by seed."""

    def __init__(self, name: str, encoder: nn.Module) -> None:
        self.name, self.encoder = name, encoder
        self.head: nn.Module | None = None
        if name == "lee":
            self.test, self.human, self.pool = lee()
            self.labels: Tensor | None = None
        else:
            train, test = documents(name, "train", HEAD_DOCS, 0), documents(name, "test", TEST_DOCS, 1)
            self.head = classifier(embed(encoder, train.inputs), train.labels)
            self.test, self.answers = test.inputs, test.labels
            self.pool, self.labels = train.inputs, train.labels
        self.dense = embed(encoder, self.test)

    def module(self) -> nn.Module:
        return Classified(self.encoder, self.head) if self.head is not None else self.encoder

    def calibration(self, seed: int) -> tuple[list[tuple[Tensor, ...]], list[Tensor] | None]:
        at = torch.from_numpy(np.random.default_rng(100 + seed).permutation(len(self.pool[0]))[:CALIBRATION])
        parts = at.split(64)
        rows = [tuple(x[p] for x in self.pool) for p in parts]
        return rows, None if self.labels is None else [self.labels[p] for p in parts]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracy in per cent, or for Lee the correlation with people's similarities times 100; mean cosine to the dense embeddings."""
        vectors = embed(model.encoder if isinstance(model, Classified) else model, self.test)
        cosine = float((vectors * self.dense).sum(1).mean())
        if self.head is not None:
            return {
                "score": float((self.head(vectors).argmax(1) == self.answers).float().mean() * 100),
                "cosine": cosine,
            }
        upper = np.triu_indices(len(vectors), 1)
        likeness = (vectors @ vectors.T).numpy()[upper]
        return {"score": float(np.corrcoef(likeness, self.human[upper])[0, 1] * 100), "cosine": cosine}


def choose(method: str, context: Context, scores: dict[str, Any]) -> Keep:
    """The method's choice; scores that do not depend on the target are kept from one target to the next."""
    module = importlib.import_module(f"compress.prune.methods.{method}")
    if not hasattr(module, "scores"):
        found: Keep = module.choose(context)
        return found
    if method not in scores:
        scores[method] = module.scores(context)
    return getattr(module, "pick", rank)(context, scores[method])


def one(task: Task, method: str, ratio: float, seed: int, cache: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """One row of the table and its refitted model."""
    module = task.module()
    batches, labels = task.calibration(seed)
    structure = located(module, describe(module), batches[0])
    context = Context(
        module,
        structure,
        batches,
        ratio,
        labels if method == "fisher" else None,
        seed,
    )
    start = time.perf_counter()
    keep = choose(method, context, cache)
    chosen = time.perf_counter() - start
    keep = to_multiples(context, keep, ROUND, ratio)
    small = slim(module, structure, keep)
    row = {
        "data": task.name, "method": method, "target": ratio, "seed": seed, "raw": task.measure(small),
        "macs": context.size.macs(shares(structure, keep)) / context.size.macs(),
        "kept": {g.name: len(keep[g.name]) for g in structure.branches()},
    }  # fmt: skip
    start = time.perf_counter()
    refit(small, module, structure, keep, batches)
    row |= {"refit": task.measure(small), "choose_s": chosen, "refit_s": time.perf_counter() - start}
    return row, small


def table(names: Sequence[str], seeds: Sequence[int]) -> None:
    path = BENCH / "prune_text.json"
    result = json.loads(path.read_text()) if path.is_file() else {"rows": [], "dense": {}}
    encoder = minilm()
    for name in names:
        task = Task(name, encoder)
        result["dense"][name] = task.measure(encoder)
        print(name, result["dense"][name], flush=True)
        caches: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
        for ratio, seed, method in itertools.product(RATIOS, seeds, METHODS):
            key = (name, method, ratio, seed)
            if any((r["data"], r["method"], r["target"], r["seed"]) == key for r in result["rows"]):
                continue  # made before: a run that was stopped goes on
            row, _ = one(task, method, ratio, seed, caches[seed])
            result["rows"].append(row)
            print(name, method, ratio, seed, f"{row['macs']:.3f}", row["raw"], row["refit"], flush=True)
            result["settings"] = {
                "head_documents": HEAD_DOCS,
                "test_documents": TEST_DOCS,
                "calibration": CALIBRATION,
                "round_to": ROUND,
            }
            save("prune_text", {**stamp(), **result})


def vtrans(variants: Sequence[str]) -> None:
    """VTrans to half of the parameters, embeddings included: 20 newsgroups without labels; the head is trained once on dense embeddings and kept."""
    from compress.api import compress
    from compress.config import CompressConfig
    from compress.recipe import state_of, stored_bytes
    from deploy.data import Batch

    name = "20newsgroups"
    encoder = minilm()
    task = Task(name, encoder)
    pool = documents(name, "train", 8000, 0)
    training = [Batch(tuple(x.numpy() for x in pool.inputs))]
    calibration = [Batch(tuple(x.numpy() for x in row)) for row in task.calibration(0)[0]]
    whole = stored_bytes(state_of(encoder))
    for variant in variants:
        config = CompressConfig(
            prune="vtrans", params=0.5, train="x", batch=32, prune_epochs=3, variant=variant, bits=32, controls=False
        )
        start = time.perf_counter()
        result = compress(encoder, config, inputs=encoder.inputs, calibration=calibration, training=training)
        seconds = time.perf_counter() - start
        row = result.record["prune"]
        size = stored_bytes(state_of(result.module))
        rows = merge("prune_vtrans", [
            {
                "variant": variant, "target": 0.5, "parameters_left": row["parameters_left"], "macs_left": row["macs_left"], "seconds": seconds,
                "steps": row["vtrans"]["steps"], "samples": row["vtrans"]["samples"], "bytes": size, "bytes_dense": whole, "threads": torch.get_num_threads(),
                "hidden": next(g["kept"] for g in row["groups"].values() if g["kind"] == "hidden"), **task.measure(result.module),
                "peak_bytes": row["peak_bytes"],
            }
        ], "variant")  # fmt: skip
        print(rows[-1], flush=True)
        save("prune_vtrans", {**stamp(), "dense": task.measure(encoder), "rows": rows})


def speed() -> None:
    """MiniLM at 0.6 MACs in ONNX Runtime, float and with dynamic int8 on top, beside dense float: ratios, file sizes, accuracy, and what pruning takes."""
    from compress.api import compress
    from compress.config import CompressConfig
    from deploy.data import Batch
    from export.stage import FLOAT, RUNTIME, convert
    from hw import latency
    from hw.runtime import runtimes
    from hw.runtime.ort import OrtProgram

    encoder = minilm()
    task = Task("20newsgroups", encoder)
    calibration = [Batch(tuple(x.numpy() for x in row)) for row in task.calibration(0)[0]]
    files: dict[str, bytes] = {}
    rows: dict[str, dict[str, Any]] = {"dense float32": task.measure(encoder)}
    result: dict[str, Any] = {"tokens": TOKENS, "data": task.name}
    for name, macs, bits in (
        ("0.6 MACs float32", 0.6, 32),
        ("dense int8 dynamic", 0.0, 8),
        ("0.6 MACs int8 dynamic", 0.6, 8),
    ):
        config = CompressConfig(prune="optin" if macs else "", macs=macs, bits=bits, controls=False)
        start = time.perf_counter()
        made = compress(encoder, config, inputs=encoder.inputs, calibration=calibration)
        if macs and bits == 32:
            result["pruning"] = {
                "seconds": made.record["prune"]["seconds"], "with_quantization_s": time.perf_counter() - start, "threads": torch.get_num_threads(),
                "peak_bytes": made.record["prune"]["peak_bytes"],
            }  # fmt: skip
        rows[name] = task.measure(made.module)
        models, _ = convert(encoder, made.module, encoder.inputs, samples=2)
        files.setdefault("dense float32", models[FLOAT].SerializeToString())
        files[name] = models[RUNTIME].SerializeToString()
        print(name, rows[name], result.get("pruning"), flush=True)
    values = [x[:1].numpy() for x in task.test]
    values[1][:] = 1
    others = ("tvm", "openvino")
    for name in [n for n in files if n != "dense float32"]:
        rows |= {f"{name}, {other}": dict(rows[name]) for other in others}
    for threads in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            programs: dict[str, Any] = {n: OrtProgram(f, threads, Path(folder)) for n, f in files.items()}
            for index, (name, other) in enumerate((n, o) for n in files if n != "dense float32" for o in others):
                place = Path(folder) / str(index)
                place.mkdir()
                programs[f"{name}, {other}"] = runtimes()[other].load(
                    onnx.load_from_string(files[name]), threads, place
                )
            calls = {n: (lambda p=p: p.run(values)) for n, p in programs.items()}
            found = latency.measure(calls, "dense float32", 300, threads)
        for name, row in found.items():
            rows[name][f"threads_{threads}"] = row.to_json()
            print(threads, name, row.ratio, row.ratio_low, row.ratio_high, flush=True)
    for name in rows:
        rows[name]["bytes"] = len(files[name.rpartition(", ")[0] or name])
    save("prune_speed", {**stamp(), **result, "rows": rows, "conditions": latency.conditions(1)})


def latencies() -> None:
    """Time of ONNX Runtime for what each method keeps on 20 newsgroups (seed 0), relative to dense: it depends on how many units of each sublayer are
    kept, not on which, so the first ones are taken."""
    from export.torch2onnx import export_float
    from hw import latency
    from hw.runtime.ort import OrtProgram

    encoder = minilm()
    structure = describe(encoder)
    path = BENCH / "prune_text.json"
    result = json.loads(path.read_text())
    values = [torch.ones(1, TOKENS, dtype=torch.int64).numpy()] * 2
    dense = export_float(encoder, encoder.inputs)[0].SerializeToString()
    found = []
    for ratio, method in itertools.product(sorted(RATIOS, reverse=True), METHODS):
        row = next(
            r
            for r in result["rows"]
            if (r["data"], r["target"], r["method"], r["seed"]) == ("20newsgroups", ratio, method, 0)
        )
        kept = {name.removeprefix("encoder."): count for name, count in row["kept"].items()}
        keep = {g.name: torch.arange(kept.get(g.name, g.units)) for g in structure.groups}
        file = export_float(slim(encoder, structure, keep), encoder.inputs)[0].SerializeToString()
        with tempfile.TemporaryDirectory() as folder:
            a, b = (OrtProgram(f, 1, Path(folder)) for f in (dense, file))
            times = latency.measure(
                {"dense": lambda a=a: a.run(values), "slim": lambda b=b: b.run(values)}, "dense", 100
            )
        t = times["slim"]
        found.append(
            {
                "target": ratio,
                "method": method,
                "ratio": t.ratio,
                "low": t.ratio_low,
                "high": t.ratio_high,
                "samples": t.samples,
            }
        )
        print(found[-1], flush=True)
    save("prune_text", {**result, "latency": {**stamp(), "rows": found}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("table", "latency", "vtrans", "speed"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", nargs="*", default=["20newsgroups", "reuters-r8", "lee"])
    parser.add_argument("--only", nargs="*", default=["faster", "fast", "full"])
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.what == "table":
        table(args.data, args.seeds)
    elif args.what == "latency":
        latencies()
    elif args.what == "vtrans":
        vtrans(args.only)
    else:
        speed()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
