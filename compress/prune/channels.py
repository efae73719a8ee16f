"""Channels of convolutional networks, through Torch-Pruning's dependency graph (Fang et al. 2023, "DepGraph").

Importance of a group of coupled channels: the Fisher information of gates on the outputs of its layers, against classes drawn from the model's own
outputs, so no labels are needed. Afterwards BatchNorm statistics are taken again from the calibration samples, and with training samples the
smaller network is trained against the dense one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config import CompressConfig
from compress.finetune.dataset import Samples
from compress.prune import stored
from compress.prune.context import Inputs
from compress.prune.size import measure
from compress.prune.structure import Structure
from deploy.checkpoint import flatten
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec, examples
from deploy.progress import track

TRIALS = 12
TOLERANCE = 0.01
MOST = 0.95  # of a layer's channels at most
PLAIN = Structure("channels", ())


def _package() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise UserError("--prune channels needs Torch-Pruning; pip install 'deploy-toolchain[prune]'") from None
    return torch_pruning


def fisher(module: nn.Module, batches: Sequence[Inputs], seed: int) -> dict[str, Tensor]:
    """Per convolution and linear layer [out channels]: squared gradient of a gate on each output channel, summed over samples."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def after(layer: Any, args: Any, out: Tensor) -> Tensor:
            kept[name] = out
            out.retain_grad()
            return out

        return after

    handles = [m.register_forward_hook(hook(n)) for n, m in layers.items()]
    try:
        for batch in track(list(batches), "Fisher information of channels"):
            with torch.enable_grad():
                out = flatten(module(*batch))[0]
                if out.ndim == 2 and out.shape[1] > 1:
                    classes = torch.multinomial(out.detach().softmax(1), 1, generator=generator)[:, 0]
                    loss = F.cross_entropy(out, classes, reduction="sum")
                else:
                    loss = (out * torch.randn(out.shape, generator=generator)).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            for name, value in kept.items():
                if value.grad is None:
                    continue
                gate = (
                    (value.detach() * value.grad).flatten(2).sum(2) if value.ndim == 4 else value.detach() * value.grad
                )
                gate = gate.reshape(-1, gate.shape[-1]) if gate.ndim > 2 else gate
                found[name] = found.get(name, torch.zeros(gate.shape[1])) + gate.square().sum(0)
            module.zero_grad()
            kept.clear()
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Importance:
    """Torch-Pruning's callable: a score per channel of a group: the sum over the layers whose channels go together."""

    def __init__(self, scores: dict[str, Tensor], names: dict[nn.Module, str]) -> None:
        self.scores, self.names = scores, names

    def __call__(self, group: Any) -> Tensor | None:
        total: Tensor | None = None
        for dependency, index in group:
            name = self.names.get(dependency.target.module, "")
            if name in self.scores and "out_channels" in dependency.handler.__name__:
                value = self.scores[name][torch.as_tensor(index)]
                total = value if total is None or total.shape != value.shape else total + value
        return total


@torch.enable_grad()
def output_layers(module: nn.Module, example: Inputs) -> list[nn.Module]:
    """The convolutions and linear layers whose results reach an output with no other such layer between: their channels are what the model gives out."""
    owner = {
        p: m for m in module.modules() for n, p in m.named_parameters(recurse=False) if n == "weight" and p.ndim > 1
    }
    found: dict[nn.Module, None] = {}
    todo = [out.grad_fn for out in flatten(module(*example)) if out.grad_fn is not None]
    seen = set(todo)
    while todo:
        node: Any = todo.pop()
        behind = [n for n, _ in node.next_functions if n is not None]
        weights = [
            v
            for n in (*behind, *(m for b in behind for m, _ in b.next_functions if m is not None))
            if (v := getattr(n, "variable", None)) is not None
        ]
        layers = [owner[v] for v in weights if v in owner and isinstance(owner[v], (nn.Conv2d, nn.Linear))]
        if layers and any(word in node.name() for word in ("Convolution", "Addmm", "Mm")):
            found |= dict.fromkeys(layers)
            continue
        new = [n for n in behind if n not in seen]
        seen |= set(new)
        todo += new
    return list(found)


@torch.enable_grad()
def _cut(
    module: nn.Module, example: Inputs, scores: dict[str, Tensor], ratio: float, config: CompressConfig
) -> tuple[nn.Module, list[Any]]:
    package = _package()
    small = copy.deepcopy(module)
    for parameter in small.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    names = {m: n for n, m in small.named_modules()}
    last = output_layers(small, example)
    pruner = package.pruner.BasePruner(
        small, example[0] if len(example) == 1 else example, importance=_Importance(scores, names), global_pruning=True,
        pruning_ratio=ratio, max_pruning_ratio=MOST, ignored_layers=last, round_to=config.round_to if config.round_to > 1 else None,
    )  # fmt: skip
    pruner.step()
    with torch.no_grad():
        for a, b in zip(flatten(small(*example)), flatten(module(*example)), strict=True):
            if a.shape != b.shape:
                raise UserError(
                    "--prune channels would change the shape of an output of this network; prune its backbone alone"
                )
    return small, pruner.pruning_history()


def prune(
    module: nn.Module, config: CompressConfig, batches: Sequence[Inputs], training: Sequence[Batch] | None
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(smaller module, its recipe, record). Raises UserError without samples or for a target that whole channels do not reach."""
    if not batches:
        raise UserError("--prune channels measures the network on samples; give --calib DATA (labels are not needed)")
    start = time.perf_counter()
    module = copy.deepcopy(module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    example = tuple(x[:1] for x in batches[0])
    scores = fisher(module, batches, config.seed)
    whole = measure(module, PLAIN, example)
    target = config.macs or config.params

    def share(small: nn.Module) -> float:
        now = measure(small, PLAIN, example)
        return float(now.macs() / whole.macs()) if config.macs else float(now.parameters() / whole.parameters())

    low, high, best = 0.0, 1.0, None
    for _ in track(list(range(TRIALS)), "searching the channel ratio"):
        ratio = (low + high) / 2
        small, history = _cut(module, example, scores, ratio, config)
        got = share(small)
        if got <= target:
            high = ratio
            if best is None or got > best[2]:
                best = (small, history, got)
            if got > target * (1 - TOLERANCE):
                break
        else:
            low = ratio
    if best is None:
        raise UserError(f"no ratio of channels brings the network to {target:g}; ask for more")
    small, history, got = best
    settle(small, batches)
    recipe = {
        "form": "channels",
        "history": [[n, bool(o), sorted(int(i) for i in index)] for n, o, index in history if len(index)],
    }
    record: dict[str, Any] = {
        "method": "channels",
        "family": "convolutional",
        "macs": float(whole.macs()),
        "parameters": float(whole.parameters()),
    }
    if training:
        from compress.prune.vtrans.run import train_weights

        samples = Samples.of(training)
        steps = max(1, round(config.prune_epochs * len(samples) / config.batch))
        record["training"] = {
            "samples": len(samples),
            "steps": steps,
            "loss": train_weights(small, module, (), samples, config, steps)[:: max(1, steps // 200)],
        }
        settle(small, batches)
    now = measure(small, PLAIN, example)
    record |= {
        "macs_left": float(now.macs() / whole.macs()),
        "parameters_left": float(now.parameters() / whole.parameters()),
        "seconds": time.perf_counter() - start,
    }
    before = {n: m.weight.shape[0] for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    after = {n: m.weight.shape[0] for n, m in small.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    record["groups"] = {n: {"kind": "channel", "units": c, "kept": after[n]} for n, c in before.items()}
    return small.eval(), recipe, record


@torch.no_grad()
def settle(module: nn.Module, batches: Sequence[Inputs]) -> None:
    """BatchNorm statistics from the samples, in place."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        module(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.enable_grad()
def rebuild(module: nn.Module, recipe: dict[str, Any], inputs: Sequence[InputSpec]) -> nn.Module:
    """The pruned architecture from Torch-Pruning's own history. inputs: the model's. Raises UserError where it does not fit the module."""
    package = _package()
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    example = tuple(torch.from_numpy(x) for x in examples(inputs, 0))
    steps = stored.history(recipe.get("history"))
    layers = dict(module.named_modules())
    for name, _, _ in steps:
        if not isinstance(layers.get(name), (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            raise UserError(f"the recipe prunes {name!r}, which this model does not have; run deploy compress again")
    graph = package.DependencyGraph().build_dependency(module, example[0] if len(example) == 1 else example)
    try:
        graph.load_pruning_history([list(s) for s in steps])
        flatten(module(*example))
    except (RuntimeError, IndexError, ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise UserError(
            f"the recipe's channels do not fit this model ({str(error).splitlines()[0][:80] if str(error) else 'they are out of range'}); run deploy compress again"
        ) from None
    return module
