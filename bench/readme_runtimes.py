"""README's tables of the runtimes."""

from __future__ import annotations

import statistics

from bench.tables import load, table


def _geometric(values: list[float]) -> float:
    return float(statistics.geometric_mean(values))


def float32() -> str:
    """TVM's time over ONNX Runtime's, float32."""
    data = load("runtimes")["float"]
    groups = {"named": "named", "lot": "by lot", "weak": "weak spots of before"}
    body = []
    for kind, title in groups.items():
        for r in (x for x in data["rows"] if x["group"] == kind):
            one, two = (r[f"threads{n}"]["tvm"]["tvm"] for n in (1, 2))
            cells = [f"{t['time_ratio']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for t in (one, two)]
            likeness = r["against_onnxruntime"]["tvm"]["difference"]
            body.append(
                [r["network"], title, *cells, f"{likeness:.0e}", f"{r['compile_s']:.1f} s", str(len(r["plain_loops"]))]
            )
    means = []
    for n in (1, 2):
        values = [r[f"threads{n}"]["tvm"]["tvm"]["time_ratio"] for r in data["rows"]]
        means.append(
            f"{n} thread{'s' if n > 1 else ''}: geometric mean {_geometric(values):.2f}, worst {max(values):.2f}"
        )
    head = ["network", "", "1 thread", "2 threads", "largest difference", "compiled in", "kernels without a rule"]
    return f"{table(head, body)}\n\n{'; '.join(means)} ({len(data['rows'])} networks)."


def int8() -> str:
    """Integers: TVM's and OpenVINO's time over ONNX Runtime's on the same file."""
    data = load("runtimes")["int8"]
    body = []
    for r in data["rows"]:
        cells = [f"{r[f'threads{n}'][k][k]['time_ratio']:.2f}" for k in ("tvm", "openvino") for n in (1, 2)]
        like = r["against_onnxruntime"]["tvm"]
        body.append([r["network"], *cells, f"{like['difference']:.0e}, {100 * like['equal_share']:.0f} %"])
    means = ", ".join(
        f"{k} {n} thread{'s' if n > 1 else ''} {_geometric([r[f'threads{n}'][k][k]['time_ratio'] for r in data['rows']]):.2f}"
        for k in ("tvm", "openvino")
        for n in (1, 2)
    )
    head = [
        "network",
        "TVM, 1 thread",
        "TVM, 2 threads",
        "OpenVINO, 1 thread",
        "OpenVINO, 2 threads",
        "TVM against ONNX Runtime: difference, equal outputs",
    ]
    return f"{table(head, body)}\n\nGeometric means: {means}."


def nncf() -> str:
    """Speed-up over float32 on ONNX Runtime, our integers and NNCF's."""
    data = load("runtimes")["nncf"]
    body = []
    for r in data["rows"]:
        for name in r["threads1"]:
            cells = [f"{1 / r[f'threads{n}'][name]['time_ratio']:.2f}x" for n in (1, 2)]
            body.append([r["network"], name, *cells, f"{r['sqnr_db'][name]:.1f} dB"])
    return table(["network", "", "1 thread", "2 threads", "signal to noise"], body)


def real() -> str:
    """MobileNetV2 with real weights: speed-up over float32 on ONNX Runtime and agreement with float, our integers and NNCF's."""
    data = load("runtimes")["real"]
    body = []
    for name, found in data["accuracy"].items():
        cells = []
        for n in (1, 2):
            t = data[f"threads{n}"][name]
            cells.append(f"{1 / t['time_ratio']:.2f}x [{1 / t['high']:.2f}, {1 / t['low']:.2f}]")
        body.append([name, *cells, f"{found['agreement_percent']:.1f} % of 200", f"{found['labels_of_20']} of 20"])
    head = ["MobileNetV2, ImageNet weights, W8A8", "1 thread", "2 threads", "same class as float", f"labels right (float {data['float_labels_of_20']})"]  # fmt: skip
    return table(head, body)


def memory() -> str:
    """What a process holds with each runtime."""
    body = []
    for r in load("runtimes")["memory"]["rows"]:
        cells = [f"{m['held']:.0f} ({m['peak']:.0f})" for m in r["memory_mb"].values()]
        body.append([r["network"], f"{r['file_mb']:.0f}", *cells])
    return table(["network, float32", "file", "ONNX Runtime", "TVM", "OpenVINO"], body)


def steps() -> str:
    """Integers of TVM that are not ONNX Runtime's, layer by layer."""
    body = [
        [r["network"], str(r["quantizers"]), f"{r['values']:,}", str(r["differ"]), str(r["largest"])]
        for r in load("runtimes")["steps"]["rows"]
    ]
    return table(["network", "quantizers", "integers", "differ", "by at most"], body)
