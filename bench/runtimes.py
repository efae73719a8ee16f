"""TVM with this project's schedules against ONNX Runtime and OpenVINO, alternated in one process, one and two threads.

python -m bench.runtimes float [NAME ...]   named networks, the lot and the weak spots, float32, no search
python -m bench.runtimes int8 [NAME ...]    static integers (convolutional networks) and dynamic products (transformers)
python -m bench.runtimes memory [NAME ...]  what a process of its own holds with each runtime
python -m bench.runtimes nncf               ResNet18 and MobileNetV2: OpenVINO with NNCF's integers against the best of our runtimes
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.common import BENCH, save, stamp
from bench.runtime_networks import BUILD, LOT, WEAK, write
from deploy.inputs import examples
from hw import latency
from hw.candidates import specs_of
from hw.memory import memory
from hw.runtime import runtimes
from hw.runtime.base import Program

NETS = Path(tempfile.gettempdir()) / "deploy-bench-nets"
CONV = ("resnet18", "resnet50", "mobilenetv2", "efficientnet_lite0")
TRANSFORMERS = ("deit_tiny", "minilm")
SAMPLES = 100


def group(name: str) -> str:
    return "lot" if name in LOT else "weak" if name in WEAK else "named"


def pair(programs: dict[str, Program], values: list[np.ndarray], base: str, threads: int) -> dict[str, Any]:
    """Times relative to `base` (below 1 is faster than it), with their interval, and wall times."""
    calls = {n: (lambda p=p: p.run(values)) for n, p in programs.items()}  # type: ignore[misc]
    found = latency.measure(calls, base, SAMPLES, threads)
    return {
        name: {
            "time_ratio": 1 / t.ratio, "low": 1 / t.ratio_high, "high": 1 / t.ratio_low, "p50_ms": t.p50_ms, "cpu_p50_ms": t.cpu_p50_ms,
            "samples": t.samples, "busy": t.busy,
        }
        for name, t in found.items()
    }  # fmt: skip


def likeness(a: list[np.ndarray], b: list[np.ndarray]) -> dict[str, float]:
    worst = max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)) for x, y in zip(a, b, strict=True))
    same = float(np.mean([np.mean(x == y) for x, y in zip(a, b, strict=True)]))
    return {"difference": worst, "equal_share": same, "spread": float(b[0].std())}


def measure(name: str, model: onnx.ModelProto, names: tuple[str, ...]) -> dict[str, Any]:
    """One network on several runtimes at one and two threads."""
    values = examples(specs_of(model), 0)
    row: dict[str, Any] = {"network": name, "group": group(name)}
    for threads in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            programs = {}
            for runtime in names:
                place = Path(folder) / runtime
                place.mkdir()
                start = time.perf_counter()
                programs[runtime] = runtimes()[runtime].load(model, threads, place)
                if runtime == "tvm" and threads == 1:
                    row["build_s"] = time.perf_counter() - start
                    record = programs[runtime].record  # type: ignore[attr-defined]
                    row["compile_s"] = record["lower_s"] + record["compile_s"]
                    row["kernels"] = len(record["kernels"])
                    row["plain_loops"] = [k["name"] for k in record["kernels"] if k["rule"] == "plain loops"]
                    row["fallbacks"] = record["fallbacks"]
            if threads == 1:
                want = programs["onnxruntime"].run(values)
                row["against_onnxruntime"] = {
                    n: likeness(p.run(values), want) for n, p in programs.items() if n != "onnxruntime"
                }
            row[f"threads{threads}"] = {
                n: pair({"onnxruntime": programs["onnxruntime"], n: p}, values, "onnxruntime", threads)
                for n, p in programs.items()
                if n != "onnxruntime"
            }
    return row


def keep(part: str, row: dict[str, Any]) -> None:
    path = BENCH / "runtimes.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    rows = [r for r in result.get(part, {}).get("rows", []) if r["network"] != row["network"]]
    result[part] = {**stamp(), "rows": [*rows, row]}
    save("runtimes", result)
    shown = {
        k: {n: round(v[n]["time_ratio"], 3) for n in v}
        for k in ("threads1", "threads2")
        for v in [row[k][next(iter(row[k]))]]
    }
    print(part, row["network"], shown, round(row.get("compile_s", 0), 1), flush=True)


def float_part(names: list[str]) -> None:
    for name in names or BUILD:
        keep("float", measure(name, onnx.load(write(name, NETS)), ("onnxruntime", "tvm")))


class Random:
    """Calibration inputs for ONNX Runtime's quantizer."""

    def __init__(self, model: onnx.ModelProto, count: int = 8) -> None:
        specs = specs_of(model)
        self._rows = iter([dict(zip([s.name for s in specs], examples(specs, i), strict=True)) for i in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def integers(name: str) -> onnx.ModelProto:
    """The network with u8 activations and s8 weights: static QDQ for convolutions, dynamic products for transformers (random calibration: for speed)."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, place = write(name, NETS), NETS / f"{name}-int8.onnx"
    if not place.is_file():
        ready = NETS / f"{name}-ready.onnx"
        model = onnx.load(source)
        del model.graph.value_info[:]
        onnx.save(model, ready)
        quant_pre_process(str(ready), str(ready), skip_symbolic_shape=True)
        if name in TRANSFORMERS:
            quantize_dynamic(
                str(ready),
                str(place),
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        else:
            quantize_static(
                str(ready), str(place), Random(model), quant_format=QuantFormat.QDQ, per_channel=True,  # type: ignore[arg-type]
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    return onnx.load(place)


def int8_part(names: list[str]) -> None:
    for name in names or (*CONV, *TRANSFORMERS):
        keep("int8", measure(name, integers(name), ("onnxruntime", "tvm", "openvino")))


def memory_part(names: list[str]) -> None:
    rows = []
    for name in names or ("mobilenetv2", "resnet50", "minilm"):
        model = onnx.load(write(name, NETS))
        values = examples(specs_of(model), 0)
        found = {r: memory(model, r, 1, values) for r in ("onnxruntime", "tvm", "openvino")}
        rows.append({"network": name, "file_mb": model.ByteSize() / 1e6, "memory_mb": found})
        print(rows[-1], flush=True)
    path = BENCH / "runtimes.json"
    save("runtimes", {**json.loads(path.read_text()), "memory": {**stamp(), "rows": rows}})


def nncf_part() -> None:
    """Every runtime on our QDQ file and OpenVINO on NNCF's, all relative to float32 on ONNX Runtime."""
    from hw.runtime.openvino import quiet

    ov = quiet()
    import nncf

    rows = []
    for name in ("resnet18", "mobilenetv2"):
        model, quantized = onnx.load(write(name, NETS)), integers(name)
        specs = specs_of(model)
        values = examples(specs, 0)
        data = nncf.Dataset([examples(specs, i)[0] for i in range(8)])
        theirs = nncf.quantize(ov.Core().read_model(model=model.SerializeToString()), data, subset_size=8)
        row: dict[str, Any] = {"network": name}
        for threads in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                programs: dict[str, Any] = {
                    "float32 on onnxruntime": runtimes()["onnxruntime"].load(model, threads, Path(folder))
                }
                for runtime in ("onnxruntime", "tvm", "openvino"):
                    place = Path(folder) / runtime
                    place.mkdir()
                    programs[f"int8 on {runtime}"] = runtimes()[runtime].load(quantized, threads, place)
                programs["NNCF int8 on OpenVINO"] = Compiled(ov, theirs, threads)
                want = programs["float32 on onnxruntime"].run(values)
                row["sqnr_db"] = {n: _sqnr(p.run(values)[0], want[0]) for n, p in programs.items() if "float" not in n}
                row[f"threads{threads}"] = {
                    n: pair({"base": programs["float32 on onnxruntime"], n: p}, values, "base", threads)[n]
                    for n, p in programs.items()
                    if "float" not in n
                }
        rows.append(row)
        print(
            name,
            {k: {n: round(1 / v["time_ratio"], 2) for n, v in row[k].items()} for k in ("threads1", "threads2")},
            row["sqnr_db"],
            flush=True,
        )
    path = BENCH / "runtimes.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    result["nncf"] = {**stamp(), "rows": rows}
    save("runtimes", result)


class Compiled:
    """An OpenVINO model that is no ONNX file, with the settings of our runtime."""

    def __init__(self, ov: Any, model: Any, threads: int) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        result = self._request.infer(values, share_inputs=True)
        return [np.array(result[0])]

    def layers(self, values: list[np.ndarray], repeats: int) -> list[Any]:
        return []


def _sqnr(got: np.ndarray, want: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("float", "int8", "nncf", "memory"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    NETS.mkdir(exist_ok=True)
    parts = {"float": float_part, "int8": int8_part, "memory": memory_part, "nncf": lambda names: nncf_part()}
    parts[args.part](args.names)


if __name__ == "__main__":
    sys.exit(main())
