"""What can be removed from a model: groups of units, and every parameter that follows each group.

A family's adapter (families/) writes these tables; masking, slimming, sizes and refitting read nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.prune import families
from deploy.errors import UserError

HEAD, NEURON, HIDDEN = "head", "neuron", "hidden"


@dataclass(frozen=True)
class Cut:
    """One axis of one parameter that follows a group: `blocks` blocks, each of `width` elements per unit."""

    parameter: str
    axis: int
    width: int = 1
    blocks: int = 1

    def elements(self, keep: Tensor, units: int) -> Tensor:
        """Indices along the axis of the units in `keep` [K]."""
        unit = (keep[:, None] * self.width + torch.arange(self.width)).reshape(-1)
        return (torch.arange(self.blocks)[:, None] * (units * self.width) + unit).reshape(-1)


@dataclass(frozen=True)
class Attribute:
    """A plain number in a module that counts a group: its value becomes kept units x width."""

    module: str
    name: str
    width: int = 1


@dataclass(frozen=True)
class Group:
    """Units that are kept or removed together with everything that follows them.

    output: the projection whose input is masked (heads and neurons), '' for hidden dimensions. width: its columns per unit.
    key: the projection whose rows are the attended tokens, where that is not `output`. empty: what replaces modules when no
    unit is left: (module, 'input' | 'bias', whether it returns a pair). sum: a module whose input is the residual sum behind
    the branch, '' where there is none of the same shape. norms: layer norms over hidden dimensions, (module, blocks).
    before: modules of the same block that run earlier and do not depend on this group. restore: where a slim model gives its
    hidden dimensions out, an identity that becomes a projection back. block: index of its block.
    """

    name: str
    kind: str
    units: int
    cuts: tuple[Cut, ...]
    attributes: tuple[Attribute, ...] = ()
    output: str = ""
    width: int = 1
    key: str = ""
    empty: tuple[tuple[str, str, bool], ...] = ()
    sum: str = ""
    norms: tuple[tuple[str, int], ...] = ()
    before: tuple[str, ...] = ()
    restore: str = ""
    block: int = 0

    @property
    def least(self) -> int:
        """Units that must stay: a branch can lose all of them, a residual stream or channels cannot."""
        return 0 if self.output else 1


@dataclass(frozen=True)
class Structure:
    """The prunable groups of one module.

    blocks: modules in the order of their execution, each one's first output being the first input of the next (or of a module between).
    encoder: the part that takes an attention mask, '' where none does. padding: the model input that is 0 for tokens that are only there to fill up, -1 where there is none.
    vocabulary: the embedding whose rows are tokens, '' where rows cannot be removed safely.
    """

    family: str
    groups: tuple[Group, ...]
    blocks: tuple[str, ...] = ()
    encoder: str = ""
    padding: int = -1
    vocabulary: str = ""
    by_name: dict[str, Group] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {g.name: g for g in self.groups})

    def of(self, *kinds: str) -> tuple[Group, ...]:
        return tuple(g for g in self.groups if g.kind in kinds)

    def branches(self) -> tuple[Group, ...]:
        """Heads and neurons: the groups that one-shot methods prune, in the order of execution."""
        return tuple(g for g in self.groups if g.output)


Keep = dict[str, Tensor]  # group -> sorted indices of the units that stay


def full(structure: Structure) -> Keep:
    """Every unit of every group."""
    return {g.name: torch.arange(g.units) for g in structure.groups}


def to_masks(structure: Structure, keep: Keep) -> dict[str, Tensor]:
    """0/1 masks [units] of the groups in `keep`."""
    masks = {}
    for name, index in keep.items():
        mask = torch.zeros(structure.by_name[name].units)
        mask[index] = 1
        masks[name] = mask
    return masks


def linear_cuts(
    inputs: Sequence[str], outputs: Sequence[str], width_in: int = 1, width_out: int = 1
) -> tuple[Cut, ...]:
    """Cuts of linear layers: rows of `inputs` (they produce the units), columns of `outputs` (they read them)."""
    rows = [Cut(f"{n}.{p}", 0, width_in) for n in inputs for p in ("weight", "bias")]
    return (*rows, *(Cut(f"{n}.weight", 1, width_out) for n in outputs))


def parent_of(root: nn.Module, at: str) -> tuple[str, nn.Module | None]:
    """(prefix, module) that holds the part whose parameters begin with `at`; None where the part is the whole."""
    if not at:
        return "", None
    name = at.rstrip(".").rpartition(".")[0]
    return f"{name}." if name else "", root.get_submodule(name)


def restored(root: nn.Module, at: str) -> str:
    """Where the module that holds a part gives hidden dimensions out and can put them back (deploy.hub.HubModel), '' where it cannot."""
    prefix, parent = parent_of(root, at)
    place = parent.restore_at(at.removeprefix(prefix)) if parent is not None and hasattr(parent, "restore_at") else ""  # type: ignore[operator]
    return f"{prefix}{place}" if place else ""


def existing(root: nn.Module, group: Group) -> Group:
    """The group without cuts of parameters that are not there (layers without bias)."""
    names = {n for n, _ in root.named_parameters(remove_duplicate=False)} | {n for n, _ in root.named_buffers()}
    return replace(group, cuts=tuple(c for c in group.cuts if c.parameter in names))


def _adapters() -> list[object]:
    return [importlib.import_module(f"{families.__name__}.{m.name}") for m in pkgutil.iter_modules(families.__path__)]


def describe(module: nn.Module) -> Structure:
    """The structure of the first part of `module` that a family's adapter knows.

    Raises UserError when no adapter knows any part of it.
    """
    known: list[str] = []
    for adapter in _adapters():
        known += adapter.CLASSES  # type: ignore[attr-defined]
        for name, part in module.named_modules():
            if type(part).__name__ in adapter.CLASSES and type(part).__module__.startswith(adapter.PACKAGE):  # type: ignore[attr-defined]
                found: Structure = adapter.describe(module, f"{name}." if name else "", part)  # type: ignore[attr-defined]
                return replace(found, groups=tuple(existing(module, g) for g in found.groups))
    raise UserError(
        f"no pruning adapter knows {type(module).__name__}; known are {', '.join(sorted(known))}, and convolutional networks with --prune channels"
    )
