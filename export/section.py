"""The export stage's part of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.report.sections import Section, Table
from export.stage import read_record


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """Parity, sizes, operators and the integer comparison."""
    record, summary = read_record(folder), manifest["summary"]
    rows = record["parity"]
    checks = Table(
        "Parity",
        ("file", "against", "figure", "bound", "inputs"),
        tuple(
            (
                c["what"],
                c["against"],
                f"{c['figure']:.2e} relative" if c["unit"] == "relative" else f"{c['figure']:.1f} dB",
                f"{'≤' if c['unit'] == 'relative' else '≥'} {c['bound']:g}",
                c["samples"],
            )
            for c in rows["checks"]
        ),
    )
    parts: list[Any] = [checks]
    if record["steps"]:
        parts.append(
            Table(
                "Integers against the QONNX reference",
                ("quantizer", "values", "differ, layer by layer", "by at most", "differ, run through", "by at most"),
                tuple(
                    (
                        r["quantizer"],
                        f"{r['values']:,}",
                        r["own_differ"],
                        r["own_max"],
                        r["carried_differ"],
                        r["carried_max"],
                    )
                    for r in record["steps"]
                ),
                "ONNX Runtime fully optimised against the QONNX graph executed by qonnx; a step is one integer of that quantizer",
            )
        )
    if record.get("operators"):
        parts.append(Table("Operators of model.onnx", ("operator", "count"), tuple(record["operators"].items())))
    facts = tuple((name, f"{size / 1e6:.2f} MB") for name, size in summary["bytes"].items())
    return Section(
        "Export", "", facts, tuple(parts), tuple(record["remarks"]), {"bytes": summary["bytes"], "parity": rows}
    )
