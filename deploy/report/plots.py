"""Plots as inline SVG (matplotlib), in the page's colours."""

from __future__ import annotations

import io
import re

from deploy.report.sections import Bars, Curves, Flow, Scatter

COLORS = ("#94a3b8", "#2563eb", "#d97706", "#059669")


def svg(part: Bars | Scatter | Curves | Flow) -> str:
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
    if isinstance(part, Bars):
        figure = _bars(plt, part)
    elif isinstance(part, Curves):
        figure = _curves(plt, part)
    else:
        figure = _scatter(plt, part) if isinstance(part, Scatter) else _flow(plt, part)
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
        ends = [high for _, high in bounds] or values
        for y, value, end in zip(ys, values, ends, strict=True):
            axis.annotate(
                f"{value:,.0f} {part.unit}" if value >= 1000 else f"{value:.3g} {part.unit}",
                (max(value, end), y),
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


def _curves(plt, part: Curves):  # type: ignore[no-untyped-def]
    figure, axis = plt.subplots(figsize=(8.4, 3.2))
    for k, (label, xs, ys) in enumerate(part.curves):
        axis.plot(
            xs, ys, color=COLORS[(k + 1) % len(COLORS)], lw=1.4, marker="o" if part.dots else None, ms=4, label=label
        )
    if part.log:
        axis.set_yscale("log")
    axis.set_xlabel(part.x_label)
    axis.set_ylabel(part.y_label)
    axis.grid(True, which="major", color="#e2e8f0", lw=0.6)
    if len(part.curves) > 1:
        axis.legend(frameon=False)
    return figure


def _places(part: Flow) -> dict[str, tuple[int, float]]:
    """(row, column) of every box: rows by the longest way from an input, columns side by side around the middle."""
    rows: dict[str, int] = {}
    for name, _, _ in part.boxes:
        rows[name] = 1 + max((rows[a] for a, b in part.arrows if b == name and a in rows), default=-1)
    places = {}
    for row in set(rows.values()):
        same = [n for n, r in rows.items() if r == row]
        for i, name in enumerate(same):
            places[name] = (row, i - (len(same) - 1) / 2)
    return places


def _flow(plt, part: Flow):  # type: ignore[no-untyped-def]
    places = _places(part)
    deep = 1 + max(r for r, _ in places.values())
    wide = 2 * max(abs(c) for _, c in places.values()) + 1
    turn = 14  # rows of one column of the page
    columns = -(-deep // turn)
    figure, axis = plt.subplots(figsize=(max(8.4, 2.9 * wide * columns), 0.62 * min(deep, turn) + 0.3))
    at = {n: ((r // turn) * (wide + 0.25) + c, -(r % turn)) for n, (r, c) in places.items()}
    for a, b in part.arrows:
        if a in at:
            (xa, ya), (xb, yb) = at[a], at[b]
            straight = ya > yb
            axis.annotate("", (xb, yb + 0.27), (xa, ya - 0.27), arrowprops={"arrowstyle": "-|>", "color": "#94a3b8", "lw": 0.9 if straight else 0.7,
                          "connectionstyle": "arc3,rad=0.0" if abs(ya - yb) <= 1 and straight else "arc3,rad=0.25"})  # fmt: skip
    for name, text, share in part.boxes:
        x, y = at[name]
        color = plt.get_cmap("Blues")(0.12 + 0.6 * share)
        axis.text(x, y, text, ha="center", va="center", fontsize=7, color="#0f172a" if share < 0.75 else "#ffffff",
                  bbox={"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "#64748b", "linewidth": 0.7})  # fmt: skip
    xs = [x for x, _ in at.values()]
    axis.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    axis.set_ylim(-min(deep, turn) + 0.4, 0.6)
    axis.axis("off")
    return figure
