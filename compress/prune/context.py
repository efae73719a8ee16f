"""What a pruning method gets: the model, its structure, samples and the target; and running parts of the model on cached inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.size import Size, measure
from compress.prune.structure import Group, Structure
from deploy.checkpoint import flatten
from deploy.errors import UserError

Inputs = tuple[Tensor, ...]
Progress = Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True)
class Context:
    """module: dense, in eval mode. batches: calibration inputs. labels: classes of the samples of each batch, where there are any.
    macs: share of the dense MACs that may stay. seed: of every random choice. notes: what a method wants to be recorded."""

    module: nn.Module
    structure: Structure
    batches: Sequence[Inputs]
    macs: float
    labels: Sequence[Tensor] | None = None
    seed: int = 0
    track: Progress = lambda rows, what: iter(rows)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        if "size" not in self.notes:
            self.notes["size"] = measure(self.module, self.structure, tuple(x[:1] for x in self.batches[0]))
        found: Size = self.notes["size"]
        return found

    @property
    def budget(self) -> float:
        """MACs per sample that the branches (heads and neurons) may take."""
        fixed = self.size.macs() - sum(
            self.size.per_unit(self.structure)[g.name] * g.units for g in self.structure.branches()
        )
        return self.macs * float(self.size.macs()) - fixed


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


def valid_tokens(structure: Structure, inputs: Inputs) -> Tensor | None:
    """[N, T] true for tokens that are no padding, None where every token counts."""
    if 0 <= structure.padding < len(inputs):
        return inputs[structure.padding] != 0
    return None


@torch.no_grad()
def located(module: nn.Module, structure: Structure, inputs: Inputs) -> Structure:
    """The structure with the model input that really arrives as attention mask, found by one pass.

    Raises UserError where a block runs more than once in a pass (an encoder that is called twice), which scores and refits do not know, or where the
    mask leaves no token.
    """
    found: list[Any] = []
    count: dict[str, int] = {}
    with ExitStack() as stack:
        if structure.encoder:

            def before(layer: Any, args: Any, kwargs: Any) -> None:
                found.append(kwargs.get("attention_mask", args[1] if len(args) > 1 else None))

            part = module.get_submodule(structure.encoder)
            stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
        for name in structure.blocks:

            def after(layer: Any, args: Any, out: Any, name: str = name) -> None:
                count[name] = count.get(name, 0) + 1

            stack.callback(module.get_submodule(name).register_forward_hook(after).remove)
        module(*inputs)
    if any(n != 1 for n in count.values()) or len(count) < len(structure.blocks):
        raise UserError(
            "a block of this model runs more than once, or never, in one pass; prune the encoder alone and put it back"
        )
    mask = next((m for m in found if m is not None), None)
    places = [k for k, x in enumerate(inputs) if x is mask]
    padding = places[0] if mask is not None and places else -1
    if padding >= 0 and not bool((inputs[padding] != 0).any()):
        raise UserError("the attention mask of --calib leaves no token; give 1 for tokens and 0 for padding")
    return replace(structure, padding=padding)


@contextmanager
def capture(module: nn.Module, wanted: Mapping[str, str], stop: str = "") -> Iterator[dict[str, Tensor]]:
    """Inputs ('in') or outputs ('out') of submodules, of the last forward pass. wanted: 'name' or 'name@tag' -> side. `stop`: the key with which a
    pass ends."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for key, side in wanted.items():
            name = key.partition("@")[0]
            part = module.get_submodule(name)

            def before(layer: Any, args: Any, key: str = key) -> None:
                found[key] = args[0].detach()
                if key == stop:
                    raise _Stop

            def after(layer: Any, args: Any, out: Any, key: str = key) -> None:
                found[key] = flatten(out)[0].detach()
                if key == stop:
                    raise _Stop

            handle = part.register_forward_pre_hook(before) if side == "in" else part.register_forward_hook(after)
            stack.callback(handle.remove)
        yield found


def run(module: nn.Module, inputs: Inputs) -> Tensor | None:
    """The first output, None where a capture ended the pass early."""
    try:
        out: Tensor = flatten(module(*inputs))[0]
    except _Stop:
        return None
    return out


@contextmanager
def replayed(module: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """The named submodules give these stored outputs instead of computing them (prefix caching)."""
    changed = []
    for name, value in outputs.items():
        part = module.get_submodule(name)
        changed.append(part)
        part.forward = lambda *args, value=value, **kwargs: value  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in changed:
            del part.forward


@torch.no_grad()
def record(
    module: nn.Module, names: Sequence[str], inputs: Inputs, stop: bool = False
) -> tuple[dict[str, Any], Tensor | None]:
    """Whole outputs of the named submodules (whatever their form) and the model's first output; None where the pass was to end with the last of them."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        for name in names:

            def after(layer: Any, args: Any, out: Any, name: str = name) -> None:
                found[name] = out
                if stop and len(found) == len(names):
                    raise _Stop

            stack.callback(module.get_submodule(name).register_forward_hook(after).remove)
        out = run(module, inputs)
    return found, out


def before(structure: Structure, group: Group) -> tuple[str, ...]:
    """Modules that run before a group's output projection and do not depend on the group: they can be replayed."""
    return (*structure.blocks[: group.block], *group.before)
