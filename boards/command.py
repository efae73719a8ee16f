"""`deploy boards`: the targets as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from boards import boards, get
from deploy.config import argument
from deploy.stage import Command, Outcome


@dataclass(frozen=True)
class BoardsConfig:
    """Settings of `deploy boards`."""

    name: str = argument("one board, with the source of each number", "")


def run(config: BoardsConfig) -> Outcome:
    if config.name:
        board = get(config.name)
        lines = [f"{k:13} {v}" for k, v in asdict(board).items() if k != "sources" and v not in ("", 0, 0.0, ())]
        lines += [f"  source of {field}: {source}" for field, source in board.sources]
        return Outcome(tuple(lines), {"board": asdict(board)})
    rows = [("board", "part", "LUT", "FF", "BRAM18", "DSP", "MHz", "GB/s", "flow")]
    for b in boards().values():
        rows.append(
            (
                b.name,
                b.part,
                str(b.lut or "-"),
                str(b.ff or "-"),
                str(b.bram18 or "-"),
                str(b.dsp or "-"),
                f"{b.clocks_mhz[0]:g}" if b.clocks_mhz else "-",
                f"{b.memory_gbs:g}" if b.memory_gbs else "-",
                b.flow,
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]) for r in rows]
    return Outcome(tuple(lines), {"boards": {n: asdict(b) for n, b in boards().items()}}, "deploy boards pynq-z2")


COMMAND = Command("boards", "list the targets, with the source of each number", BoardsConfig, run, order=60)
