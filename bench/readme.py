"""Put the measured tables into README.md, between `<!-- NAME -->` and `<!-- /NAME -->`; --check fails where they are stale.

python -m bench.readme [--check]
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from typing import Any

import boards
from bench import readme_runtimes
from bench.tables import ROOT
from bench.tables import load as _load
from bench.tables import table as _table


def fashion() -> str:
    rows = {r["row"]: r for r in _load("fashion")["rows"]}
    body = []
    for bits in ("W8A8", "W4A8", "W4A4", "W3A8", "W2A8"):
        cells = [rows.get(f"{bits} {kind}") for kind in ("real", "synthetic", "plain rounding")]
        body.append(
            [bits, *(f"{c['onnx_percent']:.2f} %" if c else "" for c in cells), f"{cells[0]['bytes'] / 1e3:.0f} kB"]
        )
    float_percent = next(iter(rows.values()))["float_percent"]
    return f"float32: {float_percent:.2f} %, 1,156 kB\n\n" + _table(
        ["weights, activations", "real calibration", "synthetic calibration", "plain rounding (control)", "size"], body
    )


def mobilenet() -> str:
    data = _load("mobilenet")
    body = [
        [
            r["row"],
            f"{r['agreement_percent']:.1f} % of {r['crops']}",
            f"{r['labels_of_20']} of 20",
            f"{r['onnx_bytes'] / 1e6:.2f} MB",
        ]
        for r in data["rows"]
    ]
    return _table(["", "same class as float", f"labels right (float {data['float_labels_of_20']})", "model.onnx"], body)


def speed() -> str:
    data = _load("speed")
    body = [
        [r["network"], r["candidate"].removesuffix(" on onnxruntime"), f"{r['ratio']:.2f}x [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]", f"{r['cpu_p50_ms']:.2f} ms", f"{r['smaller']:.2f}x"]
        for r in data["rows"]
    ]  # fmt: skip
    machine = data["conditions"]
    note = f"{machine['cpu']} ({', '.join(machine['cpu_features'])}), {data['rows'][0]['samples']} samples each"
    return _table(["network", "candidate", "speed", "CPU time", "smaller"], body) + f"\n\n{note}."


def cost() -> str:
    data = _load("cost")
    body = [
        [name, f"{statistics.median(r['seconds'] for r in rows):.1f} s ({min(r['seconds'] for r in rows):.1f} to {max(r['seconds'] for r in rows):.1f})",
         f"{statistics.median(r['peak_mb'] for r in rows) / 1e3:.2f} GB"]
        for name, rows in data["rows"].items()
    ]  # fmt: skip
    return (
        _table([f"{len(next(iter(data['rows'].values())))} runs each", "seconds, median", "peak memory"], body)
        + f"\n\n{data['nncf']}."
    )


def fpga() -> str:
    body = []
    for part in ("demo", "networks", "ulx3s"):
        if not (ROOT / "bench" / f"fpga_{part}.json").is_file():
            continue
        for name, r in _load(f"fpga_{part}")["rows"].items():
            if r["board"] in ("pynq-z1", "ultra96-v2"):  # the same parts as pynq-z2 and ultra96
                continue
            m, c = r["measured"], r["cells"]
            label = ("Fashion-MNIST CNN " if part != "networks" else "") + name
            bit = (
                f"{r['bitstream']['bytes'] / 1e3:.0f} kB, {r['bitstream']['fmax_mhz']:.1f} MHz"
                if r["bitstream"]
                else ""
            )
            body.append(
                [label, f"{r['fps']:,.0f} at {r['clock_mhz']:g} MHz", f"{m['interval']:,.0f} / {m['predicted']:,}", f"{m['integers']:,}", f"{c['lut']:,}", f"{c['ff']:,}",
                 f"{c['dsp']:,}", f"{c['bram18']:,}", bit, f"{r['seconds']:.0f} s"]
            )  # fmt: skip
    head = [
        "design",
        "frames/s",
        "cycles, simulated / predicted",
        "integers equal",
        "LUT",
        "FF",
        "DSP",
        "BRAM18",
        "bitstream, Fmax",
        "build",
    ]
    return _table(head, body)


def finetune() -> str:
    body = []
    for network, label in (("fashion", "demonstration CNN"), ("mobilenet", "MobileNetV2 0.35")):
        for bits, r in _load(f"finetune_{network}")["rows"].items():
            body.append([label, bits, f"{r['float']:.2f} %", f"{r['ptq']:.2f} %", f"{r['qat']:.2f} %", f"{r['agreement_ptq']:.2f} → {r['agreement_qat']:.2f} %",
                         f"{r['epochs']}, {r['seconds'] / 60:.0f} min"])  # fmt: skip
    return _table(
        ["network", "bits", "float", "post-training", "fine-tuned", "same class as float", "epochs, time on 2 cores"],
        body,
    )


def mixed() -> str:
    body = []
    rows = _load("mixed")["rows"]
    for network in dict.fromkeys(r["network"] for r in rows):
        for act in dict.fromkeys(r["activations"] for r in rows if r["network"] == network):
            for how in dict.fromkeys(r["how"] for r in rows):
                same = [r for r in rows if (r["network"], r["activations"], r["how"]) == (network, act, how)]
                if same:
                    tops, agree = [r["top1"] for r in same], [r["agreement"] for r in same]
                    body.append([network, str(act), how, f"{max(r['bytes'] for r in same) / 1e3:.1f} kB", _range(tops), _range(agree), f"{statistics.median(r['sqnr_db'] for r in same):.1f} dB"])  # fmt: skip
    head = ["network", "activation bits", "weights", "size", "top-1 %", "same class as float %", "signal to noise"]
    return (
        _table(head, body)
        + f"\n\nRanges: three seeds of the search (85 %: one), {_load('mixed')['trials']} trials each. MobileNetV2 with 4-bit activations was not searched."
    )


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def convbn() -> str:
    rows = _load("convbn_cost")["rows"]
    modes = [m for m in next(iter(rows.values()))["time_ratio"] if m != "eval"]
    body = [
        [name, f"{r['saved_mb']['eval']:.0f} MB", *(f"{r['memory_ratio'][m]:.2f}, {r['time_ratio'][m]['median']:.2f} [{r['time_ratio'][m]['low']:.2f}, {r['time_ratio'][m]['high']:.2f}]" for m in modes)]
        for name, r in rows.items()
    ]  # fmt: skip
    first = next(iter(rows.values()))
    note = f"Memory, time [lowest, highest of {first['rounds']} alternated rounds] as ratios to Eval; {first['image']}x{first['image']} images."
    return _table(["network", "Eval saves", *(m[0].upper() + m[1:] for m in modes)], body) + f"\n\n{note}"


def stability() -> str:
    rows = _load("convbn_stability")["rows"]
    body = []
    for lr in dict.fromkeys(r["lr"] for r in rows):
        same = [r for r in rows if r["lr"] == lr]
        body.append([f"{lr:g}", *(f"{statistics.mean(r[m] for r in same):.1f} [{min(r[m] for r in same):.1f}, {max(r[m] for r in same):.1f}]" for m in ("eval", "tune", "deploy"))])  # fmt: skip
    return _table(["learning rate", "Eval", "Tune", "Deploy"], body)


def _spread(values: list[float], digits: int = 1) -> str:
    """One value, or mean [least, most] of several seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ladder() -> str:
    rows, body = _load("codenet_ladder")["rows"], []
    for operator in dict.fromkeys(r["operator"] for r in rows):
        same = [r for r in rows if r["operator"] == operator]
        body.append([operator, *(_spread([r[k] for r in same]) for k in ("AP", "AP50", "AP75")), f"{same[0]['parameters']:,}", f"{same[0]['mmacs']:.1f}", str(len(same))])  # fmt: skip
    return _table(["spatial operator of the neck", "AP", "AP50", "AP75", "parameters", "10^6 MACs", "seeds"], body)


def codenet() -> str:
    rows = _load("codenet_quantize")["rows"]
    names = {"float": "float", "ptq": "W4A8, post-training", "qat": "W4A8, fine-tuned (2 epochs of distillation)", "onnxruntime": "the same, ONNX Runtime's integers", "integer reference": "the same, integers of the hardware"}  # fmt: skip
    body = [
        [label, *(_spread([s[key][k] for s in rows], 2) for k in ("AP", "AP50", "AP75"))]
        for key, label in names.items()
    ]
    rtl = [r["rtl"] for r in rows]
    frames, integers = (sum(t[k] for t in rtl) for k in ("frames", "integers"))
    note = f"{len(rows)} seed{'s' if len(rows) > 1 else ''}. RTL (Verilator): {frames} images, {integers:,} integers equal, {rtl[-1]['interval']:,.0f} cycles a frame ({rtl[-1]['predicted']:,} predicted)."
    return _table(["deformable network, 1,000 test canvases", "AP", "AP50", "AP75"], body) + f"\n\n{note}"


def trees() -> str:
    data = _load("codenet_trees")
    body = [[r["network"], *(f"{r[k]:.1f}" for k in ("AP", "AP50", "AP75"))] for r in data["rows"]]
    note = f"{data['train_tiles']} training and {data['test_tiles']} test tiles ({data['test_boxes']} boxes), one seed: differences of a point mean nothing."
    return _table(["network", "AP", "AP50", "AP75"], body) + f"\n\n{note}"


def block() -> str:
    body = []
    for r in _load("codenet_block")["rows"]:
        plain, deform = r["plain"], r["deformable"]
        body.append([f"{r['side']}x{r['side']}x{r['channels']}, {r['pe']} channels, {r['taps']} taps a cycle", f"{deform['interval']:,.0f} / {plain['interval']:,.0f}", f"{r['cycles_ratio']:.2f}",
                     f"{deform['lut']:,} / {plain['lut']:,}", f"{r['lut_ratio']:.2f}", f"{deform['bram18']} / {plain['bram18']}"])  # fmt: skip
    return _table(["layer", "cycles, deformable / plain", "ratio", "LUT", "ratio", "BRAM18"], body)


def fabric() -> str:
    """Configuration a in the fabric, measured, beside the paper's accelerator; the others by the folding model."""
    data = _load("codenet_fabric")
    a, paper = data["a"], data["paper_fps"]
    c, m, share = a["cells"], a["measured"], a["share"]
    peak = boards.get("ultra96").dsp * 2 * a["clock_mhz"] / 1e3
    rate = a["fps"] * a["gmacs"]
    body = [
        ["frames/s", f"{paper['a']}", f"**{a['fps']:.1f}** ({a['fps'] / paper['a']:.1f}x)"],
        ["clock", "250 MHz", f"{a['clock_mhz']:.0f} MHz (assumed)"],
        ["GMAC/s", f"{paper['a'] * a['gmacs']:.1f}", f"{rate:.1f}"],
        ["share of the chip's limit (360 multipliers, two products each)", f"{paper['a'] * a['gmacs'] / (360 * 2 * 0.25):.0%}", f"{rate / peak:.0%}"],
        ["LUT", "34,144 (48 %)", f"{c['lut']:,} ({share['lut']:.0%})"],
        ["FF", "41,827 (30 %)", f"{c['ff']:,} ({share['ff']:.0%})"],
        ["BRAM36", "216 (100 %)", f"{c['bram18'] / 2:g} ({share['bram18']:.0%})"],
        ["DSP", "360 (100 %)", f"{c['dsp']} ({share['dsp']:.0%})"],
        ["stem, split, concatenation, shuffle, upsampling", "on the processor", "in the fabric"],
    ]  # fmt: skip
    mem = a["memory"]
    note = (
        f"Simulated: {m['frames']} frames, {m['integers']:,} integers equal to the reference, with and without random stalls; {m['interval']:,.0f} cycles a frame "
        f"({m['predicted']:,} predicted), first frame {m['first_frame']:,}. Weights of {mem['channels']} layers come from memory: {mem['frame_bytes'] / 1e6:.2f} MB a frame, "
        f"{mem['bits_per_cycle'] * a['clock_mhz'] / 8:,.0f} MB/s, {mem['bits_per_cycle'] / mem['port_bits']:.0%} of one 128-bit port."
    )
    rows = []
    for r in _load("codenet_folding")["rows"]:
        u, free, there = r["usual"], r["any memory"], paper[r["config"]]
        fits = f"{u['fps']:.1f} ({u['fps'] / there:.1f}x)" if u["fits"] else "does not fit"
        rows.append([r["config"], f"{r['gmacs']:.2f}", f"{there}", fits, f"{free['fps']:.1f} ({free['fps'] / there:.1f}x)", f"{free['bram18']:,.0f}"])  # fmt: skip
    head = ["configuration", "GMAC", "frames/s, paper", "folding model, usual budget", "if block RAM were no limit", "BRAM18 that takes, of 432"]  # fmt: skip
    body_table = _table(["configuration a, 256 x 256, Ultra96", "paper (Vivado)", "here (post-synthesis, Yosys)"], body)
    return f"{body_table}\n\n{note}\n\n{_table(head, rows)}"


def deform_latency() -> str:
    data, body = _load("codenet_latency"), []
    for r in data["rows"]:
        for name, t in r["times"].items():
            body.append([f"{r['config']}, {r['resolution']} x {r['resolution']}", name, f"{t['p50_ms']:.2f} ms", f"{t['ratio']:.2f}x [{t['ratio_low']:.2f}, {t['ratio_high']:.2f}]", f"{r['bytes'][name] / 1e6:.2f} MB"])  # fmt: skip
    return _table(["configuration", "file", "p50", "speed", "size"], body)


def _mean_range(values: list[float], digits: int = 1) -> str:
    """Mean of seeds, with the range where there are several."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


NAMES = {"optin": "OPTIN, default", "optin_paper": "OPTIN, as published", "optin-paper": "OPTIN, as published", "fisher": "Fisher", "activation": "activation norm", "magnitude": "magnitude", "random": "random"}  # fmt: skip


def prune_text() -> str:
    data = _load("prune_text")
    parts = []
    for name, title, unit in (("20newsgroups", "20 newsgroups", "accuracy %"), ("reuters-r8", "Reuters R8", "accuracy %"), ("lee", "Lee", "correlation x 100")):  # fmt: skip
        rows = [r for r in data["rows"] if r["data"] == name]
        if not rows:
            continue
        body = []
        times = {(r["target"], r["method"]): f"{r['ratio']:.2f}x" for r in data.get("latency", {}).get("rows", [])}
        for ratio in sorted({r["target"] for r in rows}, reverse=True):
            for method in NAMES:
                here = [r for r in rows if r["target"] == ratio and r["method"] == method]
                if here:
                    cells = [_mean_range([r[k][v] for r in here], d) for k in ("raw", "refit") for v, d in (("score", 1), ("cosine", 3))]  # fmt: skip
                    body.append([f"{ratio:g}", NAMES[method], *cells, times.get((ratio, method), ""), str(len(here))])
        head = [
            "MACs",
            "method",
            f"{unit}, raw",
            "cosine, raw",
            f"{unit}, refitted",
            "cosine, refitted",
            "speed",
            "seeds",
        ]
        parts.append(f"{title}, dense {data['dense'][name]['score']:.1f}:\n\n{_table(head, body)}")
    means = []
    for method in NAMES:
        rows = [r for r in data["rows"] if r["target"] == 0.6 and r["method"] == method]
        scores = [
            [r["refit"]["score"] for r in rows if r["data"] == name] for name in {r["data"] for r in data["rows"]}
        ]
        if all(scores):
            means.append(f"{NAMES[method]} {statistics.mean(statistics.mean(s) for s in scores):.1f}")
    parts.append(f"Mean of the three scores at 0.6, refitted: {'; '.join(means)}.")
    return "\n\n".join(parts)


def prune_speed() -> str:
    data = _load("prune_speed")
    body = []
    for name, r in data["rows"].items():
        cells = [f"{t['ratio']:.2f}x [{t['ratio_low']:.2f}, {t['ratio_high']:.2f}], {t['p50_ms']:.2f} ms" for t in (r["threads_1"], r["threads_2"])]  # fmt: skip
        body.append([name, *cells, f"{r['bytes'] / 1e6:.1f} MB", f"{r['score']:.1f} %", f"{r['cosine']:.3f}"])
    made = data["pruning"]
    note = f"Scoring, search, slimming and refit took {made['seconds']:.0f} s on {made['threads']} threads, peak memory {made['peak_bytes'] / 1e9:.2f} GB (the process, torch included)."
    head = ["MiniLM, 64 tokens", "1 thread", "2 threads", "file", "20 newsgroups", "cosine"]
    return f"{_table(head, body)}\n\n{note}"


def prune_vtrans() -> str:
    data = _load("prune_vtrans")
    body = [
        [r["variant"], f"{r['parameters_left'] * 100:.1f} %", f"{r['macs_left'] * 100:.1f} %", f"{r['hidden']} of 384", f"{r['bytes'] / 1e6:.1f} MB ({r['bytes_dense'] / 1e6:.1f})", f"{r['score']:.1f} %", f"{r['cosine']:.3f}", f"{r['samples']:,}", f"{r['seconds'] / 60:.0f} min"]
        for r in data["rows"]
    ]  # fmt: skip
    head = ["variant", "parameters", "MACs", "hidden dimensions", "file (dense)", f"20 newsgroups (dense {data['dense']['score']:.1f})", "cosine", "documents", "time"]  # fmt: skip
    return _table(head, body)


def prune_vision() -> str:
    rows = {r["key"]: r for r in _load("prune_vision")["rows"]}
    body = []

    def add(title: str, dense: str, pick: list[dict[str, Any]], figure: str) -> None:
        if pick and dense in rows:
            first = pick[0]
            size = f"{first['macs'] * 100:.0f} % MACs, {first['parameters'] * 100:.0f} % parameters"
            body.append([title, size, f"{rows[dense][figure]:.2f}", _mean_range([r[figure] for r in pick], 2), str(len(pick))])  # fmt: skip

    for macs in (0.7, 0.5):
        for method in ("optin", "optin-paper", "fisher", "activation", "random"):
            for kind in ("raw", "refit"):
                pick = [r for k, r in rows.items() if k.startswith(f"vit {method} {macs} {kind} ")]
                add(f"ViT, {NAMES[method]}, {'refitted' if kind == 'refit' else 'raw'}", "vit dense", pick, "top1")
        pick = [r for k, r in rows.items() if k.startswith(f"vit tokens {macs} ")]
        add("ViT, OPTIN, default, with merged tokens", "vit dense", pick, "top1")
    for target in (0.5, 0.3):
        add("ViT, VTrans, trained", "vit dense", [r for k, r in rows.items() if k == f"vit vtrans {target}"], "top1")
    for macs in (0.7, 0.5, 0.3):
        for kind in ("raw", "trained"):
            add(f"CNN, channels, {kind}", "cnn dense", [r for k, r in rows.items() if k == f"cnn channels {macs} {kind}"], "top1")  # fmt: skip
    for method in ("optin", "optin-paper", "fisher", "activation", "random"):
        for kind in ("raw", "refit"):
            pick = [r for k, r in rows.items() if k == f"segformer {method} 0.7 {kind}"]
            add(f"SegFormer, {NAMES[method]}, {'refitted' if kind == 'refit' else 'raw'}", "segformer dense", pick, "miou")  # fmt: skip
    return _table(["network, method", "what stays", "dense", "pruned (top-1 %, SegFormer: mIoU %)", "runs"], body)


TABLES = {
    "runtimes-float": readme_runtimes.float32, "runtimes-int8": readme_runtimes.int8, "runtimes-nncf": readme_runtimes.nncf, "runtimes-real": readme_runtimes.real, "runtimes-memory": readme_runtimes.memory, "runtimes-steps": readme_runtimes.steps,
    "prune-text": prune_text, "prune-speed": prune_speed, "prune-vtrans": prune_vtrans, "prune-vision": prune_vision,
    "ladder": ladder, "codenet": codenet, "trees": trees, "block": block, "deform-latency": deform_latency, "fabric": fabric,
    "stability": stability, "finetune": finetune, "mixed": mixed, "convbn": convbn, "fashion": fashion, "mobilenet": mobilenet, "speed": speed, "cost": cost, "fpga": fpga,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path = ROOT / "README.md"
    before = text = path.read_text()
    for name, make in TABLES.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has no place <!-- {name} -->")
    if args.check:
        sys.exit(0 if text == before else "README.md is stale: run python -m bench.readme")
    path.write_text(text)


if __name__ == "__main__":
    main()
