"""The compress stage's part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.recipe import per_byte
from compress.stage import RECORD
from deploy.report.sections import Bars, Curves, Section, Table


def _accuracy(record: dict[str, Any]) -> Table | None:
    rows = record.get("accuracy", {})
    if "compressed_percent" in rows:
        return Table(
            "Accuracy",
            ("stage", "top-1 %", "samples"),
            tuple(_stages(record)),
            f"same class as float on {rows['agreement_percent']:.2f} % of the samples; {rows['sqnr_db']:.1f} dB signal to noise",
        )
    if "cosine" in rows:
        return Table(
            "Likeness to the float model's vectors",
            ("figure", "value"),
            (("mean cosine", f"{rows['cosine']:.4f}"), ("samples", int(rows["samples"]))),
            "no labels needed",
        )
    if "agreement_percent" in rows:
        return Table(
            "Agreement with the float model",
            ("figure", "value"),
            (
                ("same top-1 class", f"{rows['agreement_percent']:.2f} %"),
                ("signal to noise", f"{rows['sqnr_db']:.1f} dB"),
                ("samples", int(rows["samples"])),
            ),
            "measured on the calibration samples, no labels; --eval gives accuracy",
        )
    return None


def _stages(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(stage, top-1, samples) rows: float, post-training where it was fine-tuned, compressed."""
    now, before = record["accuracy"], record.get("ptq_accuracy", {})
    rows = [("float (torch)", f"{now['float_percent']:.2f}", int(now["samples"]))]
    if "compressed_percent" in before:
        rows.append(("post-training quantized (torch)", f"{before['compressed_percent']:.2f}", int(before["samples"])))
    name = "fine-tuned (torch)" if before else "compressed (torch)"
    return [*rows, (name, f"{now['compressed_percent']:.2f}", int(now["samples"]))]


def _pruning(record: dict[str, Any]) -> list[Any]:
    """What every group keeps, and the method beside the controls."""
    row = record.get("prune")
    if not row:
        return []
    parts: list[Any] = []
    if row.get("output_error"):
        errors = row["output_error"]
        parts.append(
            Bars(
                "Pruning: squared error of the output over its variance",
                tuple(errors),
                tuple(errors.values()),
                "",
                note="the same target by the method and by the controls, all refitted alike, on the calibration samples",
            )
        )
    if row.get("vtrans"):
        made = row["vtrans"]
        steps = tuple(float(k) for k in range(len(made["share"])))
        parts.append(
            Curves(
                "VTrans: expected size while the masks are trained",
                (("share", steps, tuple(made["share"])),),
                "part of the training",
                "share of the target's measure",
            )
        )
    parts.append(
        Table(
            "Pruning: units kept",
            ("group", "kind", "kept", "of"),
            tuple((n, g["kind"], g["kept"], g["units"]) for n, g in row["groups"].items()),
            f"{row['method']}: {row['macs_left'] * 100:.1f} % of the MACs, {row['parameters_left'] * 100:.1f} % of the parameters, {row['seconds']:.0f} s"
            + (f"; tokens that leave each block: {', '.join(map(str, row['tokens']))}" if row.get("tokens") else ""),
        )
    )
    return parts


def _training(record: dict[str, Any]) -> list[Any]:
    """The loss curve and the held-out metric of fine-tuning."""
    row = record.get("finetune")
    if not row:
        return []
    every = row["steps"] / max(1, len(row["losses"]))
    steps = tuple(round((k + 0.5) * every, 1) for k in range(len(row["losses"])))
    curve = Curves(
        "Fine-tuning: loss",
        (("training", steps, tuple(row["losses"])),),
        "step",
        "distillation loss",
        log=min(row["losses"]) > 0,
        note=f"{row['samples']:,} samples, {'labels' if row['labels'] else 'no labels'}, {row['processes']} process(es)",
    )
    rows = [("float model", f"{row['metric_float']:.2f}"), ("post-training", f"{row['metric_ptq']:.2f}")]
    rows += [(f"epoch {k}", f"{v:.2f}") for k, v in enumerate(row["metrics"], 1)]
    note = f"{row['held_out']} samples that were not trained on" + (
        ", stopped at the bound" if row["stopped_early"] else ""
    )
    return [curve, Table("Fine-tuning: held-out metric", ("after", row["metric"]), tuple(rows), note)]


def _search(record: dict[str, Any], config: dict[str, Any]) -> list[Any]:
    """Sensitivity by layer; the Pareto front of a search with the command that applies each point."""
    found = record.get("search")
    if not found:
        return []
    layers = found["sensitivity"]
    widths = [w for w in map(str, found["widths"]) if w != "8"]
    parts: list[Any] = [
        Bars(
            "Sensitivity: loss with one layer at fewer bits, all others at 8",
            tuple(n for n in layers for _ in widths),
            tuple(layers[n][w] for n in layers for w in widths),
            "",
            groups=tuple(f"{w} bits" for _ in layers for w in widths),
            mark=next(iter(layers.values()))["8"],
            note=f"distillation loss on {found['samples']} samples, weights rounded to nearest; the dashed line has all layers at 8 bits",
        )
    ]
    if "points" not in found:
        return parts
    points, best = found["points"], found["chosen"]
    parts.append(
        Curves(
            "Search for bits: Pareto front",
            (
                ("best found", tuple(p["cost"] for p in points), tuple(p["loss"] for p in points)),
                ("chosen", (best["cost"],), (best["loss"],)),
                *((f"uniform {w}", (p["cost"],), (p["loss"],)) for w, p in list(found["uniform"].items())[:2]),
            ),
            found["cost"],
            "distillation loss",
            log=True,
            dots=True,
            note=f"{found['trials']} different trials",
        )
    )
    base = f"deploy compress {config['model']} --bits {config['bits']} --act-bits {config['act_bits']}" + (
        f" --calib {config['calib']}" if config["calib"] else ""
    )
    rows = [
        (
            ("→ " if p["bits"] == best["bits"] else "") + f"{p['cost']:,.0f}",
            f"{p['loss']:.4f}",
            f"{p['drop']:.2f}",
            " ".join([base, *(f"--layer {f}" for f in found["flags"][str(k)])]),
        )
        for k, p in enumerate(points)
    ]
    parts.append(
        Table(
            "Points of the search",
            (found["cost"], "loss", "points lost", "apply this point"),
            tuple(rows),
            "before second-order rounding and fine-tuning, which a run with these flags adds; points lost: agreement with the float model's classes",
        )
    )
    return parts


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """Size, accuracy, methods and the layer table."""
    record = json.loads((folder / RECORD).read_text())
    summary = manifest["summary"]
    layers = Table(
        "Layers",
        ("layer", "kind", "weight bits", "activations", "MACs", "parameters", "bytes float", "bytes stored"),
        tuple(
            (
                name,
                row["kind"],
                row["bits"],
                row["activations"],
                f"{row['macs']:,}",
                f"{row['parameters']:,}",
                f"{4 * row['parameters']:,}",
                f"{-(-row['parameters'] // per_byte(row['bits'])):,}",
            )
            for name, row in record["layers"].items()
        ),
    )
    parts: list[Any] = [t for t in (_accuracy(record),) if t is not None]
    parts += _pruning(record)
    parts += _training(record)
    parts += _search(record, manifest["config"])
    parts.append(layers)
    if record["float_layers"]:
        parts.append(Table("Layers left in float", ("layer", "why"), tuple(record["float_layers"].items())))
    refused = [(r["norm"], r["reason"]) for r in record["folded"] if not r["folded"]]
    if refused:
        parts.append(Table("BatchNorms not folded", ("layer", "why"), tuple(refused)))
    methods = record["methods"]
    facts = (
        (
            "size",
            f"{summary['float_bytes'] / 1e6:.2f} → {summary['bytes'] / 1e6:.2f} MB ({summary['float_bytes'] / summary['bytes']:.2f}x)",
        ),
        ("weights / activations", f"{summary['bits']} / {summary['act_bits']} bits"),
        ("parameters", f"{summary['parameters']:,}"),
        ("MACs", f"{summary['macs']:,}"),
        ("rounding", methods["rounding"]),
        ("BatchNorms folded", f"{summary['folded']} (output within {record['fold_error']:.1e})"),
    )
    remarks = (
        *record["remarks"],
        *(
            (
                f"{len(record['merged']['blocks'])} branched blocks merged, output within {record['merged']['error']:.1e}",
            )
            if record["merged"]["blocks"]
            else ()
        ),
    )
    return Section(
        "Compression",
        record["notice"],
        facts,
        tuple(parts),
        remarks,
        {"accuracy": record.get("accuracy", {}), "bytes": summary["bytes"]},
    )
