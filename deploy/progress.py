"""Progress of long work. Silent as a library; the command line installs a bar (terminal) or a line per step (log)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_mode = "silent"


def use(mode: str) -> None:
    """Choose `silent`, `lines` or `bar`."""
    global _mode
    _mode = mode


def track(items: Iterable[T], label: object, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing how far the work is once it lasts over two seconds. str(label) is asked for again every time."""
    if _mode == "silent":
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _mode == "bar":
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(str(label), total=total)
            for item in items:
                yield item
                bar.update(task, advance=1, description=str(label))
        return
    start = said = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - said > 10:
            said = now
            sys.stderr.write(f"{label}: {done}{f'/{total}' if total else ''} after {now - start:.0f} s\n")
    if time.monotonic() - start > 2:
        sys.stderr.write(f"{label}: done, {done} in {time.monotonic() - start:.0f} s\n")
