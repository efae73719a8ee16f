"""Collect the sections of output folders and render the page."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from deploy import __version__, artifact
from deploy.errors import UserError
from deploy.report.plots import svg
from deploy.report.sections import Bars, Curves, Flow, Picture, Scatter, Section, Table
from deploy.stage import Stage, discover


@dataclass(frozen=True)
class Run:
    """One output tree: its sections in chain order, and its manifests."""

    name: str
    sections: tuple[Section, ...]
    manifests: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def notice(self) -> str:
        return next((s.notice for s in self.sections if s.notice), "")


def collect(folder: Path, skip: Path) -> Run:
    """The run in a folder. Raises UserError when it holds no output that has a section."""
    verbs = discover()
    rows = []
    for place in artifact.find(folder):
        manifest = artifact.read_manifest(place)
        stage = verbs.get(manifest["stage"])
        if place.absolute() != skip and isinstance(stage, Stage) and stage.section is not None:
            rows.append((stage.order, place, manifest, stage))
    if not rows:
        raise UserError(f"{folder} holds no output of deploy to report; give a folder that a deploy command wrote")
    rows.sort(key=lambda r: (r[0], str(r[1])))
    sections = tuple(stage.section(place, manifest) for _, place, manifest, stage in rows if stage.section is not None)
    return Run(
        folder.resolve().name,
        sections,
        tuple((str(place.relative_to(folder)) if place != folder else place.name, m) for _, place, m, _ in rows),
    )


def _render(part: Table | Bars | Scatter | Curves | Flow | Picture) -> dict[str, Any]:
    if isinstance(part, Picture):
        data = base64.b64encode(part.png).decode()
        return {"kind": "picture", "png": f"data:image/png;base64,{data}", "title": part.title, "note": part.note}
    if isinstance(part, Table):
        numeric = [all(_number(row[i]) for row in part.rows) for i in range(len(part.columns))]
        return {"kind": "table", "table": part, "numeric": numeric, "title": part.title, "note": part.note}
    return {"kind": "plot", "svg": Markup(svg(part)), "title": part.title, "note": part.note}


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """A section as JSON holds it: of pictures their size."""
    parts = [{**p, "png": f"{len(p['png'])} bytes"} if "png" in p else p for p in section["parts"]]
    return {**section, "parts": parts}


def _number(cell: Any) -> bool:
    text = str(cell).replace(",", "").replace("%", "").strip()
    return not text or text.replace(".", "", 1).lstrip("-").isdigit()


def _stages(runs: list[Run]) -> Table | None:
    """Accuracy at every stage in one table, for one run."""
    rows: list[tuple[Any, ...]] = []
    for run in runs:
        for section in run.sections:
            accuracy = section.data.get("accuracy", {})
            if "compressed_percent" in accuracy:
                rows += [
                    (run.name, "float, torch", f"{accuracy['float_percent']:.2f}", int(accuracy["samples"])),
                    (run.name, "compressed, torch", f"{accuracy['compressed_percent']:.2f}", int(accuracy["samples"])),
                ]
            for name, row in section.data.get("candidates", {}).items():
                if "percent" in row.get("accuracy", {}):
                    rows.append((run.name, name, f"{row['accuracy']['percent']:.2f}", int(row["accuracy"]["samples"])))
    return Table("Accuracy at every stage", ("run", "stage", "top-1 %", "samples"), tuple(rows)) if rows else None


def _compare(runs: list[Run]) -> Table | None:
    if len(runs) < 2:
        return None
    names = list(dict.fromkeys((s.title, label) for run in runs for s in run.sections for label, _ in s.facts))
    facts = [{(s.title, label): value for s in run.sections for label, value in s.facts} for run in runs]
    return Table(
        "Side by side",
        ("figure", *(run.name for run in runs)),
        tuple((f"{t}: {label}", *(f.get((t, label), "–") for f in facts)) for t, label in names),
    )


def build(folders: list[Path], target: Path) -> tuple[str, dict[str, Any]]:
    """The page as HTML and the same content as plain data."""
    runs = [collect(folder, target) for folder in folders]
    environment = Environment(
        loader=PackageLoader("deploy.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["part"] = _render
    shared = [_render(t) for t in (_compare(runs), _stages(runs)) if t is not None]
    chain = [
        (run.name, name, m["stage"], m["key"], m["versions"], m["wall_seconds"], m["inputs"])
        for run in runs
        for name, m in run.manifests
    ]
    html = environment.get_template("page.html").render(runs=runs, shared=shared, chain=chain, version=__version__)
    data = {
        "version": __version__,
        "runs": [
            {
                "name": r.name,
                "notice": r.notice,
                "sections": [_plain(asdict(s)) for s in r.sections],
                "manifests": {n: {"key": m["key"], "stage": m["stage"]} for n, m in r.manifests},
            }
            for r in runs
        ],
    }
    return html, data
