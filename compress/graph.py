"""nn.Module -> torch.fx graph, the form that the passes of this floor work on."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import fx, nn

from compress.deform import LEAVES

log = logging.getLogger(__name__)


def _opaque() -> tuple[tuple[type, ...], tuple[Any, ...]]:
    """Modules and functions of timm that its authors mark as not traceable; they stay single nodes."""
    from timm.models._features_fx import get_notrace_functions, get_notrace_modules

    return tuple(get_notrace_modules()), tuple(get_notrace_functions())


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        self._leaves, functions = _opaque()
        super().__init__(autowrap_functions=functions)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        from compress.quantize.scheme import is_leaf

        return (
            isinstance(module, (*self._leaves, *LEAVES))
            or is_leaf(module)
            or super().is_leaf_module(module, qualified_name)
        )


def plain_layers(module: nn.Module) -> None:
    """Replace timm's composite layers by torch's plain ones, in place: BatchNormAct2d by BatchNorm, dropout, activation; its
    Linear (which differs only under TorchScript autocast) by nn.Linear."""
    for name, child in list(module.named_children()):
        if (
            isinstance(child, nn.BatchNorm2d)
            and type(child) is not nn.BatchNorm2d
            and isinstance(getattr(child, "act", None), nn.Module)
        ):
            plain = nn.BatchNorm2d(
                child.num_features, child.eps, child.momentum or 0.1, child.affine, child.track_running_stats
            )
            plain.load_state_dict({k: v for k, v in child.state_dict().items() if k in plain.state_dict()})
            rest = [
                m
                for m in (getattr(child, "drop", None), child.act)
                if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)
            ]
            setattr(module, name, nn.Sequential(plain, *rest).train(child.training))
        elif isinstance(child, nn.Linear) and type(child).__module__ == "timm.layers.linear":
            linear = nn.Linear(child.in_features, child.out_features, child.bias is not None)
            linear.load_state_dict(child.state_dict())
            setattr(module, name, linear.train(child.training))
        else:
            plain_layers(child)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a placeholder whose value is fixed, with the guards on it (nothing else uses it)."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def trace(module: nn.Module, inputs: int = 1) -> fx.GraphModule | None:
    """The fx graph of `module` with `inputs` tensor arguments, or None where the model cannot be traced.

    A GraphModule is returned as it is. Further arguments keep their defaults.
    """
    if isinstance(module, fx.GraphModule):
        return module
    parameters = list(inspect.signature(module.forward).parameters.values())
    rest = {p.name: p.default for p in parameters[inputs:] if p.default is not p.empty}
    tracer = _Tracer()
    try:
        graph = tracer.trace(module, concrete_args=rest or None)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
        NotImplementedError,
        KeyError,
        AssertionError,
        IndexError,
        NameError,
    ) as error:
        log.info(
            "the model cannot be traced as a graph (%s); its layers are treated one by one",
            str(error).splitlines()[0][:100],
        )
        return None
    for node in [n for n in graph.nodes if n.op == "placeholder"][inputs:]:
        _erase(graph, node)
    if sum(n.op == "placeholder" for n in graph.nodes) != inputs:
        return None
    return fx.GraphModule(module, graph).eval()


def submodule(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, else None."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def calls(gm: fx.GraphModule) -> dict[str, int]:
    """How often each module is called in the graph."""
    count: dict[str, int] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            count[str(node.target)] = count.get(str(node.target), 0) + 1
    return count


@torch.no_grad()
def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| / max|b|, infinite where b is constant (a constant output proves nothing)."""
    if not bool((b != b.reshape(-1)[0]).any()):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max())
