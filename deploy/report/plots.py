"""Plots as inline SVG (matplotlib), in the page's colours."""

from __future__ import annotations

import io
import re

from deploy.report.sections import Bars, Scatter

COLORS = ("#94a3b8", "#2563eb", "#d97706", "#059669")


def svg(part: Bars | Scatter) -> str:
    """The plot as an <svg> element."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "deploy",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#cbd5e1",
            "xtick.color": "#475569",
            "ytick.color": "#0f172a",
        }
    )
    figure = _bars(plt, part) if isinstance(part, Bars) else _scatter(plt, part)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)


def _bars(plt, part: Bars):  # type: ignore[no-untyped-def]
    groups = list(dict.fromkeys(part.groups)) or [""]
    names = list(dict.fromkeys(part.labels))
    figure, axis = plt.subplots(figsize=(8.4, 0.5 + len(names) * (0.26 + 0.13 * (len(groups) - 1))))
    height = 0.8 / len(groups)
    for g, group in enumerate(groups):
        rows = [
            (names.index(label), value, i)
            for i, (label, value) in enumerate(zip(part.labels, part.values, strict=True))
            if not part.groups or part.groups[i] == group
        ]
        ys = [n + (g - (len(groups) - 1) / 2) * height for n, _, _ in rows]
        values = [v for _, v, _ in rows]
        bounds = [part.errors[i] for _, _, i in rows] if part.errors else []
        spread = (
            [
                [max(0, v - lo) for v, (lo, _) in zip(values, bounds, strict=True)],
                [max(0, hi - v) for v, (_, hi) in zip(values, bounds, strict=True)],
            ]
            if bounds
            else None
        )
        axis.barh(
            ys,
            values,
            height * 0.9,
            color=COLORS[(g + (len(groups) == 1)) % len(COLORS)],
            xerr=spread,
            label=group or None,
            error_kw={"ecolor": "#0f172a", "lw": 1},
        )
        for y, value in zip(ys, values, strict=True):
            axis.annotate(
                f"{value:.3g} {part.unit}",
                (value, y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="#334155",
            )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    if part.mark is not None:
        axis.axvline(part.mark, color="#dc2626", lw=1, ls="--")
    axis.set_xlabel(part.unit)
    if len(groups) > 1:
        axis.legend(frameon=False, loc="lower right")
    return figure


def _scatter(plt, part: Scatter):  # type: ignore[no-untyped-def]
    figure, axis = plt.subplots(figsize=(8.4, 4.2))
    for label, xs, ys in part.lines:
        axis.plot(xs, ys, color="#dc2626", lw=1.2, label=label)
    axis.scatter(part.x, part.y, s=26, color=COLORS[1], alpha=0.8, zorder=3)
    axis.set_xscale("log")
    axis.set_yscale("log")
    slowest = sorted(range(len(part.y)), key=lambda i: part.y[i])
    for i in {*slowest[:3], *slowest[-3:]}:
        axis.annotate(
            part.labels[i],
            (part.x[i], part.y[i]),
            xytext=(5, -9),
            textcoords="offset points",
            fontsize=7,
            color="#475569",
        )
    axis.set_xlabel(part.x_label)
    axis.set_ylabel(part.y_label)
    axis.grid(True, which="major", color="#e2e8f0", lw=0.6)
    if part.lines:
        axis.legend(frameon=False, loc="lower right")
    return figure
