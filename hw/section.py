"""The profile stage's part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.report.sections import Bars, Scatter, Section, Table
from hw.profile import RECORD


def _candidates(record: dict[str, Any]) -> list[Any]:
    rows, labels, values, errors = [], [], [], []
    for name, row in record["candidates"].items():
        if "error" in row:
            rows.append((name, "refused", "", "", "", "", "", row["error"]))
            continue
        t, a = row["latency"], row["accuracy"]
        accuracy = (
            f"{a['percent']:.2f} %"
            if "percent" in a
            else f"{a['agreement']:.2f} % agree"
            if "agreement" in a
            else "not measured"
        )
        ratio = (
            "1 (baseline)"
            if name == record["baseline"]
            else f"{t['ratio']:.2f} [{t['ratio_low']:.2f}, {t['ratio_high']:.2f}]"
        )
        verdict = "baseline" if name == record["baseline"] else t["verdict"]
        rows.append(
            (
                name,
                f"{t['p50_ms']:.3f}",
                f"{t['p90_ms']:.3f}",
                f"{t['p99_ms']:.3f}",
                f"{t['cpu_p50_ms']:.3f}",
                ratio,
                f"{row['bytes'] / 1e6:.2f}",
                f"{verdict}; {accuracy}" + ("; machine busy, use CPU time" if t["busy"] else ""),
            )
        )
        labels.append(name)
        values.append(t["ratio"])
        errors.append((t["ratio_low"], t["ratio_high"]))
    c = record["conditions"]
    note = (
        f"{next(r['latency']['samples'] for r in record['candidates'].values() if 'latency' in r)} samples each, alternated in rounds of 5 in one process; "
        f"ratio of {c['clock']}, median over rounds with 95 % bootstrap interval; {c['threads']} thread(s), {c['cores']} cores, load {c['load_1min']:.1f}, {c['cpu']} ({', '.join(c['cpu_features'])})"
    )
    table = Table(
        "Latency",
        ("candidate", "p50 ms", "p90 ms", "p99 ms", "CPU p50 ms", "times the baseline's speed", "MB", "verdict"),
        tuple(rows),
        note,
    )
    return [
        table,
        Bars(
            "Speed relative to the baseline",
            tuple(labels),
            tuple(values),
            "x",
            tuple(errors),
            mark=1.0,
            note="above 1 is faster; bars are 95 % intervals",
        ),
    ]


def _layers(record: dict[str, Any]) -> list[Any]:
    layers = record["layers"]
    if not layers:
        return []
    top = sorted(layers, key=lambda r: -r["us"])[:24]
    peak = record["peaks"]
    has_float = all(r["float_us"] is not None for r in top)
    bars = Bars(
        "Slowest layers",
        tuple(r["layer"] for r in top for _ in range(2 if has_float else 1)),
        tuple(v for r in top for v in ((r["float_us"], r["us"]) if has_float else (r["us"],))),
        "µs",
        groups=tuple(g for _ in top for g in (("float32", "chosen") if has_float else ("chosen",))),
    )
    limit = peak["int8_gmacs"] if record["integer"] else peak["float_gmacs"]
    table = Table(
        "Layers of the chosen candidate",
        (
            "layer",
            "operator",
            "MACs",
            "parameters",
            "weight bytes",
            "activation bytes (float)",
            "µs",
            "float32 µs",
            "GMAC/s",
            "of peak",
        ),
        tuple(
            (
                r["layer"],
                r["op"],
                f"{r['macs']:,}",
                f"{r['parameters']:,}",
                f"{r['weight_bytes']:,}",
                f"{r['activation_bytes']:,}",
                f"{r['us']:.1f}",
                "" if r["float_us"] is None else f"{r['float_us']:.1f}",
                f"{r['gmacs']:.1f}",
                f"{100 * r['gmacs'] / limit:.0f} %",
            )
            for r in layers
        ),
    )
    bytes_per = 1 if record["integer"] else 4
    xs = tuple(r["macs"] / max(1.0, r["weight_bytes"] + r["activation_bytes"] * bytes_per / 4) for r in layers)
    low, high = min(xs) / 2, max(max(xs) * 2, 4 * limit / peak["copy_gbs"])
    knee = limit / peak["copy_gbs"]
    roof = (low, min(max(knee, low), high), high)
    line = ("measured roof", roof, tuple(min(limit, x * peak["copy_gbs"]) for x in roof))
    macs, us = sum(r["macs"] for r in layers), sum(r["us"] for r in layers)
    share = 100 * macs / max(us, 1e-9) / 1e3 / limit
    bound = "memory traffic and per-layer overhead" if sum(x < knee for x in xs) > len(xs) / 2 else "compute"
    note = (
        f"roof measured here: {peak['int8_gmacs']:.0f} GMAC/s int8, {peak['float_gmacs']:.0f} float32 (1024-cubed product), {peak['copy_gbs']:.1f} GB/s copy. "
        f"The layers reach {share:.0f} % of the compute limit; most of them are bound by {bound}."
    )
    plot = Scatter(
        "Roofline",
        xs,
        tuple(r["gmacs"] for r in layers),
        tuple(r["layer"] for r in layers),
        "MAC per byte moved",
        "GMAC/s",
        (line,),
        note,
    )
    return [bars, plot, table]


def _memory(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Nothing where it was not measured (records of earlier versions, a child that failed)."""
    found = record.get("memory_mb", {}).get(record["chosen"])
    return [("memory", f"{found['held']:.0f} MB held")] if found else []


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """Latency with its method, layers, roofline, what stayed in float."""
    record = json.loads((folder / RECORD).read_text())
    if "remote" in record:
        from hw.native import remote

        return remote.section(record)
    parts = [*_candidates(record), *_layers(record)]
    if record["float_left"]:
        parts.append(
            Table(
                "Heavy operators still in float",
                ("layer", "operator", "µs", "why"),
                tuple((r["layer"], r["op"], f"{r['us']:.1f}", r["why"]) for r in record["float_left"]),
            )
        )
    if record["by_operator_us"]:
        parts.append(
            Table(
                "Time by operator that really ran",
                ("operator", "µs"),
                tuple((k, f"{v:.1f}") for k, v in record["by_operator_us"].items()),
            )
        )
    chosen = record["candidates"][record["chosen"]]
    facts = [
        ("chosen", record["chosen"]),
        ("why", record["why"]),
        ("p50", f"{chosen['latency']['p50_ms']:.3f} ms"),
        ("size", f"{chosen['bytes'] / 1e6:.2f} MB"),
        *_memory(record),
    ]
    remarks = []
    if record.get("memory_mb"):
        rows = (f"{n} holds {m['held']:.0f} MB (at most {m['peak']:.0f})" for n, m in record["memory_mb"].items())
        remarks.append(f"memory that loading and running add to a process of its own: {', '.join(rows)}")
    remarks += [
        f"memory of {name} was not measured: {why}" for name, why in record.get("memory_unmeasured", {}).items()
    ]
    plain = [k["name"] for k in record.get("kernels", []) if k["rule"] == "plain loops"]
    if plain:
        remarks.append(f"TVM kernels without a schedule of their own, run as plain loops: {', '.join(plain)}")
    return Section(
        "Profile",
        "",
        tuple(facts),
        tuple(parts),
        tuple(remarks),
        {"candidates": record["candidates"], "chosen": record["chosen"]},
    )
