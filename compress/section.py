"""The compress stage's part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.stage import RECORD
from deploy.report.sections import Section, Table


def _accuracy(record: dict[str, Any]) -> Table | None:
    rows = record.get("accuracy", {})
    if "compressed_percent" in rows:
        return Table(
            "Accuracy",
            ("stage", "top-1 %", "samples"),
            (
                ("float (torch)", f"{rows['float_percent']:.2f}", int(rows["samples"])),
                ("compressed (torch)", f"{rows['compressed_percent']:.2f}", int(rows["samples"])),
            ),
            f"same class as float on {rows['agreement_percent']:.2f} % of the samples; {rows['sqnr_db']:.1f} dB signal to noise",
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
                f"{(row['parameters'] + 1) // 2 if row['bits'] <= 4 else row['parameters']:,}",
            )
            for name, row in record["layers"].items()
        ),
    )
    parts: list[Any] = [t for t in (_accuracy(record),) if t is not None]
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
