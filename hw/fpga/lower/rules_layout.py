"""Rules of the operators that only move values: they act on the index of a state, and cost no hardware by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from hw.fpga.lower.convert import Context, rule
from hw.fpga.lower.grids import as_vector, materialize
from hw.fpga.lower.problems import CannotLower
from hw.fpga.lower.state import State


def _set(context: Context, name: str, state: State, view: np.ndarray) -> None:
    if not view.size or view.shape[0] != 1:
        raise CannotLower("it changes the batch", "export with a fixed batch of one")
    context.states[name] = replace(state, view=view)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
def reorder(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    view = state.view
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = context.constant(node.input[1]).reshape(-1).tolist()
    if node.op_type == "Reshape":
        target = [
            view.shape[i] if n == 0 and not attributes.get("allowzero") else int(n) for i, n in enumerate(axes or [])
        ]
        new = view.reshape(target)
    elif node.op_type == "Flatten":
        axis = int(attributes.get("axis", 1))
        new = view.reshape(int(np.prod(view.shape[:axis])), -1)
    elif node.op_type == "Squeeze":
        new = np.squeeze(view, tuple(int(a) for a in axes)) if axes is not None else np.squeeze(view)
    elif node.op_type == "Unsqueeze":
        new = np.expand_dims(view, tuple(int(a) for a in axes or []))
    else:
        new = view.transpose(attributes.get("perm"))
    _set(context, node.output[0], state, new)


@rule("Slice")
def slice_(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    rows = [context.constant(n).reshape(-1).tolist() for n in node.input[1:] if n]
    starts, ends = rows[:2]
    axes = rows[2] if len(rows) > 2 else list(range(len(starts)))
    steps = rows[3] if len(rows) > 3 else [1] * len(starts)
    view = state.view
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = [slice(None)] * view.ndim
        chosen[int(axis)] = slice(
            int(start), None if step < 0 and end < -view.shape[int(axis)] else int(end), int(step)
        )
        view = view[tuple(chosen)]
    _set(context, node.output[0], state, view)


@rule("Split")
def split(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    axis = int(attributes.get("axis", 0))
    if len(node.input) > 1 and node.input[1]:
        sizes = context.constant(node.input[1]).reshape(-1).astype(int).tolist()
    elif "split" in attributes:
        sizes = list(attributes["split"])
    else:
        count = len(node.output)
        each = -(-state.view.shape[axis] // count)
        sizes = [min(each, state.view.shape[axis] - i * each) for i in range(count)]
    for name, view in zip(node.output, np.split(state.view, np.cumsum(sizes)[:-1], axis=axis), strict=True):
        _set(context, name, state, view)


@rule("Gather")
def gather(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    _set(
        context,
        node.output[0],
        state,
        np.take(state.view, context.constant(node.input[1]).astype(int), axis=int(attributes.get("axis", 0))),
    )


@rule("Concat")
def concat(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Channels side by side; each part keeps its own expression until a quantizer or a layer asks for integers."""
    parts = []
    for name in node.input:
        if name in context.constants:
            raise CannotLower("it joins a constant", "fold the constant into the next layer")
        part = as_vector(context, context.state(name))
        parts.append(part if part.spatial == (1, 1) and part.rank == 2 else materialize(context, part)[0])
    rank = parts[0].rank
    if int(attributes.get("axis", 1)) % rank != 1 or any(p.spatial != parts[0].spatial for p in parts):
        raise CannotLower("it joins other axes than channels", "join along axis 1")
    made = State.of(tuple(q for p in parts for q in p.pieces), parts[0].spatial, rank)
    if rank == 2:  # vectors keep their order of elements
        starts = np.cumsum([0, *(p.channels for p in parts[:-1])])
        made = replace(made, view=np.concatenate([p.view + s for p, s in zip(parts, starts, strict=True)], axis=1))
    context.states[node.output[0]] = made
