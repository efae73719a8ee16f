"""The slim module computes what the masked one computes, for every family and any masks; sizes are counted right."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.graph import relative_error
from compress.prune.mask import kept_norm, masked
from compress.prune.size import measure, shares
from compress.prune.slim import Emptied, rounded, slim
from compress.prune.structure import Keep, Structure, describe, to_masks
from deploy.errors import UserError
from tests.compress.small_transformers import FAMILIES, example


@functools.cache
def family(name: str) -> tuple[nn.Module, Structure, tuple[Tensor, ...]]:
    module = FAMILIES[name]()
    return module, describe(module), example(module)


def drawn(structure: Structure, seed: int, share: float, whole_hidden: bool) -> Keep:
    """Random units of every group; with small shares heads, neurons and whole branches empty."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.groups:
        index = (torch.rand(group.units, generator=generator) < share).nonzero()[:, 0]
        if group.kind == "hidden" and whole_hidden:
            index = torch.arange(group.units)
        keep[group.name] = index if len(index) >= group.least else torch.tensor([group.units - 1])
    return keep


@pytest.mark.parametrize("name", FAMILIES)
def test_slim_equals_masked(name: str) -> None:
    module, structure, inputs = family(name)

    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.15, 0.5, 0.85]), whole=st.booleans())
    @torch.no_grad()
    def equal(seed: int, share: float, whole: bool) -> None:
        keep = drawn(structure, seed, share, whole)
        small = slim(module, structure, keep)
        with masked(module, structure, to_masks(structure, keep)):
            want = module(*inputs)
        got = small(*inputs)
        assert got.shape == want.shape
        # a constant output proves nothing about units, but it must still be the same constant
        error = relative_error(got, want)
        assert error < 1e-5 or torch.allclose(got, want, atol=1e-6)

    equal()
    with torch.no_grad():
        dense = module(*inputs)
        keep = drawn(structure, 1, 0.5, False)
        assert relative_error(slim(module, structure, keep)(*inputs), dense) > 1e-3  # pruning does change these models


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_counted(name: str) -> None:
    module, structure, inputs = family(name)
    size = measure(module, structure, inputs)
    assert size.parameters() == sum(p.numel() for p in module.parameters())
    keep = {g.name: torch.arange(max(1, g.units // 2)) for g in structure.groups}
    small = slim(module, structure, keep)
    extra = sum(
        m.weight.numel() for n, m in small.named_modules() if n in [g.restore for g in structure.groups if g.restore]
    )
    assert size.parameters(shares(structure, keep)) == sum(p.numel() for p in small.parameters()) - extra


def test_macs_agree_with_torch() -> None:
    """Swin's attention is written out, so torch's own counter sees all of it."""
    module, structure, inputs = family("swin")
    keep = {g.name: torch.arange(max(1, g.units // 2)) for g in structure.groups}
    size = measure(module, structure, inputs)
    for part, share in ((module, {}), (slim(module, structure, keep), shares(structure, keep))):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            part(*inputs)
        assert size.macs(share) == pytest.approx(counter.get_total_flops() / 2 / len(inputs[0]))


def test_an_emptied_branch_keeps_its_bias() -> None:
    module, structure, _inputs = family("vit")
    keep = {"blocks.0.heads": torch.tensor([], dtype=torch.long)}
    small = slim(module, structure, keep)
    part = small.get_submodule("blocks.0.attn")
    assert isinstance(part, Emptied) and torch.equal(part.bias, module.get_submodule("blocks.0.attn.proj").bias)
    assert float(part.bias.abs().max()) > 0.01


def test_grouped_heads_go_with_their_queries() -> None:
    module, structure, _inputs = family("llama")
    small = slim(module, structure, {"model.model.layers.0.heads": torch.tensor([0, 2])})
    layer = small.get_submodule("model.model.layers.0.self_attn")
    assert layer.k_proj.weight.shape[0] == 2 * layer.head_dim and layer.q_proj.weight.shape[0] == 4 * layer.head_dim
    whole = module.get_submodule("model.model.layers.0.self_attn.q_proj").weight
    rows = torch.cat([torch.arange(0, 2 * layer.head_dim), torch.arange(4 * layer.head_dim, 6 * layer.head_dim)])
    assert torch.equal(layer.q_proj.weight, whole[rows])


def test_tied_weights_stay_tied() -> None:
    module, structure, _ = family("gpt2")
    hidden = structure.of("hidden")[0]
    small = slim(module, structure, {hidden.name: torch.arange(5)})
    assert small.get_submodule("model.lm_head").weight is small.get_submodule("model.transformer.wte").weight
    assert small.get_submodule("model.lm_head").weight.shape == (90, 5)


def test_norm_over_kept_dimensions() -> None:
    norm = nn.LayerNorm(7)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x, mask = torch.randn(4, 7), torch.tensor([1.0, 0, 1, 1, 0, 1, 0])
    part = nn.LayerNorm(4)
    part.load_state_dict({k: v[mask.bool()] for k, v in norm.state_dict().items()})
    got = kept_norm(norm, x, mask)
    assert (
        torch.allclose(got[:, mask.bool()], part(x[:, mask.bool()]), atol=1e-6)
        and float(got[:, ~mask.bool()].abs().max()) == 0
    )


@settings(max_examples=60, deadline=None)
@given(kept=st.integers(0, 40), step=st.sampled_from([2, 4, 8, 16]))
def test_rounded_widths(kept: int, step: int) -> None:
    _, structure, _ = family("bert")
    group = next(g for g in structure.groups if g.kind == "neuron")
    order = {group.name: torch.randperm(group.units)}
    found = rounded({group.name: order[group.name][:kept].sort().values}, order, structure, step)[group.name]
    assert len(found) % step == 0 or len(found) == group.units
    assert abs(len(found) - kept) <= step / 2 or len(found) == group.units or (0 < kept < step == len(found))
    assert (len(found) == 0) == (kept == 0)
    smaller = set(found.tolist()), set(order[group.name][:kept].tolist())
    assert min(smaller, key=len) <= max(smaller, key=len)


def test_rounding_never_passes_the_budget() -> None:
    module, structure, inputs = family("bert")
    size = measure(module, structure, inputs)
    keep = {g.name: torch.arange(g.units * 5 // 8) for g in structure.branches()}
    order = {g.name: torch.arange(g.units) for g in structure.branches()}
    limit = size.macs(shares(structure, keep))
    assert size.macs(shares(structure, rounded(keep, order, structure, 16))) > limit
    fitted = rounded(keep, order, structure, 16, lambda k: size.macs(shares(structure, k)) <= limit)
    assert size.macs(shares(structure, fitted)) <= limit


def test_unknown_models_are_refused() -> None:
    with pytest.raises(UserError, match="no pruning adapter knows Sequential"):
        describe(nn.Sequential(nn.Linear(3, 3)))
