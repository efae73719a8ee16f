"""Bits for the layers of one model under one budget."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.config import CompressConfig
from compress.quantize.plan import Plan, parse_overrides
from compress.search.budget import cost, parse
from compress.search.optimize import Point, Widths, choose, pareto, search
from compress.search.trial import WIDTHS, Bench, Bits
from deploy.config import as_dict
from deploy.errors import UserError
from deploy.inputs import InputSpec

SAMPLES = 512


def assign(
    root: nn.Module, plan: Plan, config: CompressConfig, batches: list[tuple[Tensor, ...]], specs: Sequence[InputSpec]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(--layer values of the chosen bits, record). Without a budget only the sensitivity is measured. Raises UserError without
    samples, and what the search raises."""
    if not batches:
        raise UserError("--budget and --sensitivity measure layers on samples; give --calib DATA")
    if config.study and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(
            "--study shares a search among commands, not among the processes of one; search first, then train with the --layer flags it prints"
        )
    used, count = [], 0
    for batch in batches:
        if count < SAMPLES:
            used.append(batch)
            count += len(batch[0])
    bench = Bench(root, plan, config, used)
    sensitivity = bench.sensitivity()
    record: dict[str, Any] = {"sensitivity": sensitivity, "samples": count, "widths": list(WIDTHS)}
    if not config.budget:
        return (), record
    budget = parse(config.budget)
    if budget.kind == "accuracy" and not bench.classifies:
        raise UserError("--budget accuracy=... counts classes, and this model's output is none; give a size")
    of = (
        bench.size
        if budget.kind in ("size", "accuracy")
        else cost(budget.kind, bench.module, specs, config.board, config.target_fps)
    )
    widths = _widths(bench, plan, config)
    points = search(bench, of, widths, sensitivity, config.trials, config.seed, config.study, _name(bench, config))
    best = choose(points, budget)
    record |= {
        "budget": config.budget,
        "cost": "bytes" if budget.kind in ("size", "accuracy") else budget.kind,
        "trials": len(points),
        "points": [p.to_json() for p in pareto(points)],
        "uniform": {str(w): p.to_json() for w in WIDTHS if (p := _uniform(points, widths, w)) is not None},
        "chosen": best.to_json(),
        "flags": {str(k): list(flags(p.bits, plan)) for k, p in enumerate(pareto(points))},
    }
    return flags(best.bits, plan), record


def flags(bits: Bits, plan: Plan) -> tuple[str, ...]:
    """--layer values for the layers whose bits differ from the plan's."""
    return tuple(f"{n}={b}" for n, b in bits.items() if plan.layers[n].bits != b)


def _widths(bench: Bench, plan: Plan, config: CompressConfig) -> Widths:
    """What each layer may have: what --layer says, at least --first-last-bits at the ends, else every width."""
    fixed = {n for n in bench.names if _overridden(n, config)}
    return {
        n: [plan.layers[n].bits]
        if n in fixed
        else [w for w in WIDTHS if n not in plan.ends or w >= config.first_last_bits]
        for n in bench.names
    }


def _overridden(name: str, config: CompressConfig) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern, _, _ in parse_overrides(config.layer))


def _uniform(points: list[Point], widths: Widths, width: int) -> Point | None:
    bits = {n: min(w, key=lambda v: abs(v - width)) for n, w in widths.items()}
    return next((p for p in points if p.bits == bits), None)


def _name(bench: Bench, config: CompressConfig) -> str:
    """The study's name: trials are shared only among runs of the same weights, samples and settings (the limit of the budget
    and the number of trials may differ)."""
    digest = hashlib.sha256()
    free = {"budget", "trials", "seed", "model", "calib", "eval", "eval_samples", "train", "finetune", "output"}
    rows = {k: v for k, v in as_dict(config, identity_only=True).items() if k not in free}
    digest.update(
        repr([sorted(rows.items()), config.budget.partition("=")[0], sorted(bench.elements.items())]).encode()
    )
    for values in (bench.state.values(), *bench.batches, *bench.wanted):
        for tensor in values:
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return "bits-" + digest.hexdigest()[:16]
