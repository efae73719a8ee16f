"""The method of every latency in this project.

Candidates run alternately, in rounds of a few runs each, in one process. Warm-up lasts until a candidate's times settle. At
least 100 samples each, fewer are refused. Wall time and the thread's CPU time are both kept; with one thread the ratios come
from CPU time, which other work on the machine hardly moves. A ratio is the median over rounds, with the 95 % bootstrap
interval of that median; "faster" needs the whole interval above 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.errors import UserError
from deploy.progress import track

MIN_SAMPLES = 100
INNER = 5
BUSY = 1.15


@dataclass(frozen=True)
class Latency:
    """Times of one candidate in milliseconds, and its speed relative to the baseline (above 1 is faster)."""

    samples: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_p50_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    busy: bool

    @property
    def verdict(self) -> str:
        if self.ratio_low > 1:
            return "faster"
        return "slower" if self.ratio_high < 1 else "no difference shown"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def _warm(call: Callable[[], Any], limit_s: float = 3.0) -> None:
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < limit_s or len(times) < 5:
        t = time.perf_counter()
        call()
        times.append(time.perf_counter() - t)
        if len(times) >= 10 and abs(np.median(times[-5:]) / np.median(times[-10:-5]) - 1) < 0.05:
            return


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the median of `values` by resampling."""
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def measure(
    candidates: Mapping[str, Callable[[], Any]], baseline: str, samples: int = MIN_SAMPLES, threads: int = 1
) -> dict[str, Latency]:
    """Time the candidates alternately against `baseline` (one of them).

    Raises UserError for fewer than MIN_SAMPLES samples.
    """
    if samples < MIN_SAMPLES:
        raise UserError(f"--samples {samples} is too few to report; give at least {MIN_SAMPLES}")
    for call in candidates.values():
        _warm(call)
    rounds = -(-samples // INNER)
    wall = {n: np.zeros((rounds, INNER)) for n in candidates}
    cpu = {n: np.zeros((rounds, INNER)) for n in candidates}
    names = list(candidates)
    for r in track(range(rounds), "measuring"):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            call = candidates[name]
            for i in range(INNER):
                c, t = time.thread_time(), time.perf_counter()
                call()
                wall[name][r, i] = time.perf_counter() - t
                cpu[name][r, i] = time.thread_time() - c
    used = cpu if threads == 1 else wall
    base = np.median(used[baseline], axis=1)
    found = {}
    for name in candidates:
        ratios = base / np.maximum(np.median(used[name], axis=1), 1e-9)
        low, high = (1.0, 1.0) if name == baseline else bootstrap(ratios)
        w = wall[name].reshape(-1) * 1e3
        cpu_p50 = float(np.median(cpu[name]) * 1e3)
        p50 = float(np.median(w))
        found[name] = Latency(
            w.size,
            float(w.min()),
            p50,
            float(np.percentile(w, 90)),
            float(np.percentile(w, 99)),
            cpu_p50,
            1.0 if name == baseline else float(np.median(ratios)),
            low,
            high,
            threads == 1 and p50 > BUSY * cpu_p50,
        )
    return found


def conditions(threads: int) -> dict[str, Any]:
    """What else matters for a figure: load, cores, thread count, pinning, CPU."""
    cpu = next((x.split(":", 1)[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown")
    flags = next((x.split(":", 1)[1].split() for x in _lines("/proc/cpuinfo") if x.startswith("flags")), [])
    interesting = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if f in flags]
    return {
        "cpu": cpu,
        "cpu_features": interesting,
        "cores": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load_1min": os.getloadavg()[0],
        "clock": "thread CPU time" if threads == 1 else "wall time",
    }


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as stream:  # noqa: PTH123 - a /proc file
            return stream.read().splitlines()
    except OSError:
        return []
