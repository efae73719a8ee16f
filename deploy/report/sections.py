"""What a stage hands to the report: headline figures, tables and plots as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are shown as given, so format them before."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """A horizontal bar chart; `errors` are (low, high) absolute ends, `mark` draws a vertical reference line."""

    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    unit: str
    errors: tuple[tuple[float, float], ...] = ()
    mark: float | None = None
    groups: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Scatter:
    """Points (x, y) with labels on logarithmic axes, and reference lines given as (label, x list, y list): a roofline."""

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...]
    x_label: str
    y_label: str
    lines: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines (label, x values, y values) over one x axis; `log` makes the y axis logarithmic, `dots` marks every point."""

    title: str
    curves: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    x_label: str
    y_label: str
    log: bool = False
    dots: bool = False
    note: str = ""


@dataclass(frozen=True)
class Flow:
    """A dataflow graph: boxes of (name, text, share 0..1, which colours them) and arrows (from, to) between names."""

    title: str
    boxes: tuple[tuple[str, str, float], ...]
    arrows: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as the bytes of a PNG file."""

    title: str
    png: bytes
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One stage's part of the page. `notice` is shown first on the page; `facts` are (label, value) headline figures."""

    title: str
    notice: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    parts: tuple[Table | Bars | Scatter | Curves | Flow | Picture, ...] = ()
    remarks: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
