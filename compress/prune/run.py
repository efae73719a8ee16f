"""Pruning of one model by a configuration: method, slim module, refit, record; and the same module again from a recipe."""

from __future__ import annotations

import copy
import importlib
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.config import CompressConfig
from compress.prune import stored
from compress.prune.context import Context, Inputs, located
from compress.prune.controls import controls, output_error, to_multiples
from compress.prune.prepare import prepare
from compress.prune.refit import refit
from compress.prune.size import measure, shares
from compress.prune.slim import check_equal, slim
from compress.prune.structure import Keep, describe
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec
from deploy.progress import track


def rebuild(module: nn.Module, recipe: Any, inputs: Sequence[InputSpec]) -> nn.Module:
    """The pruned architecture of a recipe; its weights are loaded afterwards. inputs: the model's. Raises UserError for a recipe that does not fit it."""
    recipe = stored.units(recipe)
    if recipe["form"] == "channels":
        from compress.prune.channels import rebuild as channels

        return channels(module, recipe, inputs)
    module = prepare(copy.deepcopy(module))
    structure = describe(module)
    keep: Keep = {}
    for name, rows in recipe["keep"].items():
        group = structure.by_name.get(name)
        if group is None:
            raise UserError(
                f"the recipe keeps units of {name!r} that this model does not have; run deploy compress again"
            )
        keep[name] = torch.tensor(
            stored.indices(rows, f"the units of {name}", group.units, group.least), dtype=torch.long
        )
    module = slim(module, structure, keep)
    if recipe.get("vocabulary") is not None:
        from compress.prune.vocabulary import rows_of_table, shrink

        rows = stored.indices(recipe["vocabulary"], "the rows of its vocabulary", rows_of_table(structure, module), 1)
        module = shrink(module, structure.vocabulary, torch.tensor(rows))
    if recipe.get("tokens") is not None:
        from compress.prune.tokens import merging

        module = merging(module, structure, stored.counts(recipe["tokens"], "its tokens", len(structure.blocks)))
    return module


def prune(
    module: nn.Module,
    config: CompressConfig,
    batches: Sequence[Inputs],
    labels: Sequence[Tensor] | None,
    training: Sequence[Batch] | None,
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(smaller module, its recipe, record). `module` stays as it is.

    Raises UserError for targets or data that do not fit, BoundError when slim and masked model differ.
    """
    if config.prune == "channels":
        from compress.prune.channels import prune as channels

        return channels(module, config, batches, training)
    start = time.perf_counter()
    dense = prepare(copy.deepcopy(module)).eval()
    structure = describe(dense)
    if not batches:
        raise UserError("--prune measures the model on samples; give --calib DATA (labels are not needed)")
    structure = located(dense, structure, batches[0])
    context = Context(dense, structure, batches, config.macs, labels, config.seed, track)
    size = measure(dense, structure, tuple(x[:1] for x in batches[0]))
    record: dict[str, Any] = {
        "method": config.prune,
        "family": structure.family,
        "macs": float(size.macs()),
        "parameters": float(size.parameters()),
    }
    schedule: list[int] = []
    tokens = 0
    if config.prune == "vtrans":
        from compress.prune.vtrans.run import train

        small, keep, trained = train(dense, structure, size, config, training)
        record["vtrans"] = trained
    else:
        method = importlib.import_module(f"compress.prune.methods.{config.prune.replace('-', '_')}")
        macs = config.macs
        if config.prune_tokens:
            from compress.prune.tokens import exact, split

            macs, tokens, curves = split(context)
        keep = (
            method.choose(Context(dense, structure, batches, macs, labels, config.seed, track))
            if macs < 1
            else {g.name: torch.arange(g.units) for g in structure.branches()}
        )
        keep = to_multiples(context, keep, config.round_to, macs)
        if config.prune_tokens:
            schedule = exact(context, shares(structure, keep), tokens, curves)
        small = slim(dense, structure, keep)
        record["equal"] = check_equal(dense, structure, keep, small, batches[0])
        record["chosen_s"] = time.perf_counter() - start
        if config.refit:
            record["refit"] = refit(small, dense, structure, keep, batches)
        if config.controls and not config.prune_tokens:
            own = {config.prune: output_error(small, dense, batches)}
            record["output_error"] = controls(context, config.refit, config.round_to) | own
        if schedule:
            from compress.prune.tokens import merging

            small = merging(small, structure, schedule)
            record["tokens"] = schedule
    recipe: dict[str, Any] = {
        "form": "units",
        "keep": {n: i.tolist() for n, i in keep.items() if len(i) < structure.by_name[n].units},
    }
    if record.get("tokens"):
        recipe["tokens"] = record["tokens"]
    if config.prune_vocabulary:
        from compress.prune.vocabulary import seen, shrink

        rows = seen(
            structure,
            small,
            [*batches, *([] if training is None else [tuple(torch.from_numpy(v) for v in b.inputs) for b in training])],
        )
        small = shrink(small, structure.vocabulary, rows)
        recipe["vocabulary"] = rows.tolist()
        record["vocabulary"] = len(rows)
    share = shares(structure, keep)
    if schedule:
        from compress.prune.tokens import Merges, merged_macs

        record["macs_left"] = merged_macs(
            size, structure, share, tokens, schedule, Merges.of(dense, structure)
        ) / float(size.macs())
    else:
        record["macs_left"] = float(size.macs(share) / size.macs())
    record["parameters_left"] = sum(p.numel() for p in small.parameters()) / float(size.parameters())
    record["groups"] = {
        g.name: {"kind": g.kind, "units": g.units, "kept": len(keep.get(g.name, range(g.units)))}
        for g in structure.groups
    }
    record["seconds"] = time.perf_counter() - start
    record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return small.eval(), recipe, record
