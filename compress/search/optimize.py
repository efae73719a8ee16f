"""The search for bits by layer: Optuna over the trials of one model, two objectives (loss, cost), resumable and shared.

The first trials are the uniform widths and a greedy walk by sensitivity (the layer whose narrowing costs least loss per byte
saved goes next), so that the search starts from what a person would try; the rest is Optuna's TPE.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.search.budget import Budget
from compress.search.trial import WIDTHS, Bench, Bits
from deploy.errors import BoundError, UserError
from deploy.progress import track

log = logging.getLogger(__name__)
Cost = Callable[[Bits], float]
Widths = dict[str, list[int]]


@dataclass(frozen=True)
class Point:
    """One trial: loss (distillation), cost, points of agreement lost against the float model (None: no classes), bits."""

    loss: float
    cost: float
    drop: float | None
    bits: Bits

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def greedy(bench: Bench, sensitivity: dict[str, dict[int, float]], widths: Widths) -> list[Bits]:
    """From the largest width everywhere down to the least, one layer by one width at a time."""
    bits = {n: max(w) for n, w in widths.items()}
    found = [dict(bits)]
    while True:
        moves = []
        for name, now in bits.items():
            lower = max((w for w in widths[name] if w < now), default=0)
            if not lower:
                continue
            lost = max(sensitivity[name][lower] - sensitivity[name][now], 0.0)
            saved = bench.elements[name] * (now - lower)
            moves.append((lost / saved, name, lower))
        if not moves:
            return found
        _, name, lower = min(moves)
        bits[name] = lower
        found.append(dict(bits))


def pareto(points: list[Point]) -> list[Point]:
    """The points that no other beats in loss and cost, by cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def choose(points: list[Point], budget: Budget) -> Point:
    """The least loss within a cost, or the least cost within the points that may be lost. Raises BoundError for none."""
    if budget.kind == "accuracy":
        drops = [p.drop for p in points if p.drop is not None]
        able = [p for p in points if p.drop is not None and p.drop <= budget.limit]
        if not able:
            raise BoundError(
                f"no trial keeps within {budget.limit:g} points of the float model (best: {min(drops):.2f} lost); "
                "allow more, or raise --first-last-bits"
            )
        return min(able, key=lambda p: (p.cost, p.loss))
    able = [p for p in points if p.cost <= budget.limit]
    if not able:
        raise BoundError(
            f"no trial keeps {budget.kind} within {budget.limit:,.0f} (least: {min(p.cost for p in points):,.0f}); allow more, "
            "or lower --first-last-bits"
        )
    return min(able, key=lambda p: (p.loss, p.cost))


def search(
    bench: Bench, cost: Cost, widths: Widths, sensitivity: dict[str, dict[int, float]], trials: int, seed: int, storage: str, name: str
) -> list[Point]:  # fmt: skip
    """All points of the study `name` in `storage` (an Optuna URL, '' for memory) once it has `trials` of them.

    widths: what each layer may have. Several workers may run this at once with the same storage. Raises UserError when optuna is missing or the storage cannot be opened.
    """
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise UserError("--budget needs optuna; pip install 'deploy-toolchain[finetune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=storage or None, study_name=name, load_if_exists=True, directions=["minimize", "minimize"]
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise UserError(
            f"--study {storage} cannot be opened ({str(error).splitlines()[0][:120]}); check the URL"
        ) from None
    begun = len(study.get_trials(deepcopy=False))
    # a lone search is repeatable; workers of a shared one must not repeat each other's draws
    own = int.from_bytes(os.urandom(4), "little") if storage else 0
    study.sampler = optuna.samplers.TPESampler(seed=(seed + own) % 2**32, multivariate=True, n_startup_trials=0)
    if not begun:
        for bits in _first(bench, sensitivity, widths, trials):
            study.enqueue_trial(bits, skip_if_exists=True)

    def done() -> list[Any]:
        return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    for _ in track(range(max(0, trials - len(done()))), "searching bits"):
        if len(done()) >= trials:  # other workers
            break
        trial = study.ask()
        bits = {n: int(trial.suggest_categorical(n, w)) for n, w in widths.items()}
        same = next((t for t in done() if t.params == bits), None)
        if same is not None:  # computed before: no need to again
            trial.set_user_attr("drop", same.user_attrs["drop"])
            study.tell(trial, same.values)
            continue
        loss = bench.loss(bits)
        same_class = bench.agreement()
        trial.set_user_attr("drop", None if same_class is None else 100.0 - same_class)
        study.tell(trial, (loss, cost(bits)))
    finished = sorted(done(), key=lambda t: t.number)[
        : max(trials, 1)
    ]  # the same for every worker that saw them finish
    rows = {tuple(t.params[n] for n in bench.names): t for t in finished}
    return [
        Point(t.values[0], t.values[1], t.user_attrs.get("drop"), dict(zip(bench.names, key, strict=True)))
        for key, t in rows.items()
    ]


def _first(bench: Bench, sensitivity: dict[str, dict[int, float]], widths: Widths, trials: int) -> list[Bits]:
    """Uniform widths, then points of the greedy walk, at most half of all trials."""
    uniform = [{n: min(widths[n], key=lambda v: abs(v - w)) for n in bench.names} for w in WIDTHS]
    walk = greedy(bench, sensitivity, widths)
    every = max(1, -(-len(walk) // max(1, trials // 2 - len(uniform))))
    return uniform + walk[::every]
