"""Masks become a really smaller module: parameters are cut, counts corrected, emptied branches replaced by their bias."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import relative_error, replace_module
from compress.prune.mask import masked
from compress.prune.structure import Group, Keep, Structure, to_masks
from deploy.checkpoint import flatten
from deploy.errors import BoundError, UserError

TOLERANCE = 1e-5  # of slim against masked


class Skip(nn.Module):
    """Gives its input on: the core of a branch that has no unit left (the projection behind it is an Emptied)."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (x, None) if self.pair else x


class Emptied(nn.Module):
    """A branch that has no unit left: its output bias [D] for every token."""

    def __init__(self, bias: Tensor, pair: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())
        self.pair = pair

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.bias.expand(*hidden_states.shape[:-1], self.bias.shape[0])
        return (out, None) if self.pair else out


def _cut_parameters(module: nn.Module, cuts: Sequence[tuple[str, int, Tensor]]) -> None:
    """Select indices along axes of parameters (and buffers), in place; tied parameters are cut once and stay tied."""
    owners: dict[int, list[str]] = defaultdict(list)
    values: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )
    for name, value in values.items():
        owners[id(value)].append(name)
    done: set[tuple[int, int]] = set()
    new: dict[int, Tensor] = {}
    for name, axis, index in cuts:
        key = id(values[name])
        if (key, axis) in done:
            continue
        done.add((key, axis))
        new[key] = new.get(key, values[name].detach()).index_select(axis, index)
    for key, tensor in new.items():
        first = values[owners[key][0]]
        value = (
            nn.Parameter(tensor.contiguous(), first.requires_grad)
            if isinstance(first, nn.Parameter)
            else tensor.contiguous()
        )
        for name in owners[key]:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, value)


def _correct_counts(module: nn.Module) -> None:
    """Layers state the shapes of their weights."""
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        elif isinstance(layer, nn.Embedding):
            layer.num_embeddings, layer.embedding_dim = weight.shape
        elif isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = tuple(weight.shape)
        elif isinstance(layer, nn.Conv2d):
            if layer.groups > 1 and layer.groups == layer.out_channels and weight.shape[1] == 1:
                layer.groups = layer.in_channels = weight.shape[0]
            else:
                layer.in_channels = weight.shape[1] * layer.groups
            layer.out_channels = weight.shape[0]


def _empty(module: nn.Module, group: Group) -> None:
    """Replace the modules of a branch without units."""
    bias = _bias(module, group)
    for name, form, pair in group.empty:
        replace_module(module, name, Skip(pair) if form == "input" else Emptied(bias, pair))


def _bias(module: nn.Module, group: Group) -> Tensor:
    dense: Any = module.get_submodule(group.output)
    return dense.bias.detach() if dense.bias is not None else dense.weight.new_zeros(dense.weight.shape[0])


@torch.no_grad()
def slim(module: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    """A smaller copy of `module` with the units `keep` [group -> sorted indices]; groups that are not named stay whole.

    It computes what the masked module computes (mask.py). Hidden dimensions that the model gives out are put back by a linear layer.
    """
    module = copy.deepcopy(module)
    cuts = []
    for name, index in keep.items():
        group = structure.by_name[name]
        if len(index) < group.units:
            cuts += [(c.parameter, c.axis, c.elements(index, group.units)) for c in group.cuts]
    _cut_parameters(module, cuts)
    _correct_counts(module)
    for name, index in keep.items():
        group = structure.by_name[name]
        if len(index) == group.units:
            continue
        for attribute in group.attributes:
            setattr(module.get_submodule(attribute.module), attribute.name, len(index) * attribute.width)
        if not len(index):
            _empty(module, group)
        if group.restore:
            back = nn.Linear(len(index), group.units, bias=False)
            back.weight.copy_(torch.eye(group.units)[:, index])
            replace_module(module, group.restore, back.train(module.training))
    return module


def rounded(
    keep: Keep,
    order: dict[str, Tensor],
    structure: Structure,
    round_to: int,
    fits: Callable[[Keep], bool] = lambda keep: True,
) -> Keep:
    """`keep` with neuron and hidden counts at multiples of `round_to` (to the nearest, at most all), the best of `order` [units, best first]
    staying. Heads are whole units already. While the result does not fit, the group that gained most by rounding loses
    a step; what that leaves free goes to those that lost most. Raises UserError where no multiples fit."""
    found = dict(keep)
    able = [n for n in keep if structure.by_name[n].kind != "head"] if round_to > 1 else []
    step = {n: min(round_to, structure.by_name[n].units) for n in able}

    def resize(name: str, count: int) -> None:
        found[name] = order[name][:count].sort().values

    for name in able:
        group, wanted = structure.by_name[name], len(keep[name])
        count = min(group.units, (wanted + step[name] // 2) // step[name] * step[name])
        resize(name, max(count, step[name]) if wanted or group.least else 0)
    nearest = {n: len(found[n]) for n in able}
    while not fits(found):
        low = [n for n in able if len(found[n]) - step[n] >= max(step[n], structure.by_name[n].least)]
        if not low:
            raise UserError(f"--round-to {round_to} is too coarse for this model and target; lower it")
        name = max(low, key=lambda n: len(found[n]) - len(keep[n]))
        resize(name, len(found[name]) - step[name])
    grown = True
    while grown:  # what the steps down left free
        grown = False
        for name in sorted(able, key=lambda n: len(found[n]) - len(keep[n])):
            before = found[name]
            if len(before) >= nearest[name]:
                continue
            resize(name, min(structure.by_name[name].units, len(before) + step[name]))
            if fits(found):
                grown = True
                break
            found[name] = before
    return found


@torch.no_grad()
def check_equal(
    module: nn.Module, structure: Structure, keep: Keep, small: nn.Module, inputs: Sequence[Tensor]
) -> float:
    """Relative difference between slim and masked model. Raises BoundError above TOLERANCE."""
    with masked(module, structure, to_masks(structure, keep)):
        want = flatten(module(*inputs))[0]
    error = relative_error(flatten(small(*inputs))[0], want)
    if error != float("inf") and error > TOLERANCE:
        raise BoundError(
            f"the slim model differs from the masked one by {error:.1e} relative, bound {TOLERANCE:g}; report this model"
        )
    return error
