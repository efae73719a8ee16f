"""VTrans: the bottleneck's terms, the target, what the masks become. Channels, tokens and vocabulary: each against a plain computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.config import CompressConfig
from compress.graph import relative_error
from compress.prune import tokens
from compress.prune.context import Context
from compress.prune.mask import masked
from compress.prune.run import prune, rebuild
from compress.prune.size import measure, shares
from compress.prune.slim import slim
from compress.prune.structure import describe
from compress.prune.vocabulary import seen, shrink
from compress.prune.vtrans.choose import choose, fold_means
from compress.prune.vtrans.vib import Masks, Vib
from deploy.checkpoint import load
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec
from tests.compress.small_transformers import FAMILIES, example
from tests.conftest import CALIB, MODEL


def specs_of(inputs: tuple[Tensor, ...]) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(f"x{k}", (1, *x.shape[1:])) for k, x in enumerate(inputs))


def test_divergence_is_that_of_the_fitted_prior() -> None:
    """min over xi of KL(N(mu, s^2) || N(0, xi)) = 1/2 log(1 + mu^2 / s^2), the minimum found numerically."""
    vib = Vib(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        vib.mean.copy_(torch.tensor([0.1, -1.0, 2.0, 0.5, -0.3]))
        vib.log_variance.copy_(torch.tensor([-1.0, -3.0, 0.5, -6.0, 1.0]))
    mean, variance = vib.mean.detach(), vib.log_variance.detach().exp()
    prior = torch.logspace(-4, 2, 20_000)[:, None]
    kl = 0.5 * (prior.log() - variance.log() + (variance + mean.square()) / prior - 1)
    assert float(vib.divergence()) == pytest.approx(float(kl.min(0).values.sum()), rel=1e-4)
    assert torch.equal(vib.kept().detach(), (mean.square() > variance).float())


def test_threshold_follows_the_aim() -> None:
    module = FAMILIES["bert"]()
    structure = describe(module)
    size = measure(module, structure, example(module))
    masks = Masks(structure, 0)
    with torch.no_grad():
        for part in masks.modules():
            if isinstance(part, Vib):
                part.log_variance.uniform_(-8, -1)
    for aim in (1.0, 0.8, 0.5):
        masks.project(lambda s: float(size.macs(s) / size.macs()), aim)
        got = float(size.macs(masks.shares()) / size.macs())
        assert got <= aim + 1e-6 and got > aim - 0.12
    sample = masks.sample(4, torch.Generator().manual_seed(0))
    for name, mask in sample.items():
        assert float((mask == 0).float().mean()) == pytest.approx(1 - float(masks.shares()[name]), abs=1e-6)


def test_gradient_reaches_removed_units() -> None:
    vib = Vib(4, torch.Generator().manual_seed(0))
    vib.threshold = -20.0
    out = vib.sample(3, torch.Generator().manual_seed(0))
    assert float(out.abs().max()) == 0
    out.sum().backward()
    assert vib.log_variance.grad is not None and float(vib.log_variance.grad.abs().min()) > 0


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "swin"])
def test_means_fold_into_the_weights(name: str) -> None:
    module = FAMILIES[name]()
    structure, inputs = describe(module), example(module)
    generator = torch.Generator().manual_seed(3)
    means = {g.name: 0.5 + torch.rand(g.units, generator=generator) for g in structure.groups}
    keep = {g.name: torch.arange(max(1, g.units // 2)) for g in structure.groups}
    scaled = {n: m.clone() for n, m in means.items()}
    for group in structure.groups:
        scaled[group.name][len(keep[group.name]) :] = 0
    with torch.no_grad(), masked(module, structure, scaled):
        want = module(*inputs)
    fold_means(module, structure, means)
    with torch.no_grad():
        assert relative_error(slim(module, structure, keep)(*inputs), want) < 1e-5


@pytest.mark.parametrize("target", [{"params": 0.6}, {"macs": 0.5}])
@pytest.mark.parametrize("variant", ["fast", "faster"])
def test_vtrans_meets_its_target(target: dict[str, float], variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.prune.vtrans.run.LEAST", 30)
    module = FAMILIES["vit"]()
    inputs = example(module, 64)
    config = CompressConfig(prune="vtrans", train="x", batch=16, round_to=1, variant=variant, **target)
    small, recipe, row = prune(module, config, [inputs], None, [Batch(tuple(x.numpy() for x in inputs))])
    got = row["macs_left"] if "macs" in target else row["parameters_left"]
    assert got <= next(iter(target.values())) + 0.01 and got > next(iter(target.values())) - 0.08
    assert row["vtrans"]["samples"] < 64 and row["vtrans"]["share"][0] == 1.0 and row["vtrans"]["share"][-1] < 0.75
    again = rebuild(module, recipe, specs_of(inputs))
    again.load_state_dict(small.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs), small(*inputs))


def test_vtrans_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training brings the slim model nearer to the dense one than the cut left it, and masks alone leave the weights they do not refit."""
    monkeypatch.setattr("compress.prune.vtrans.run.LEAST", 60)
    module = FAMILIES["bert-classifier"]()
    inputs = example(module, 64)
    config = CompressConfig(
        prune="vtrans", train="x", batch=16, macs=0.6, variant="full", prune_epochs=1, prune_lr=3e-3
    )
    _, _, row = prune(module, config, [inputs], None, [Batch(tuple(x.numpy() for x in inputs))])
    curve = row["vtrans"]["weights_loss"]
    assert np.mean(curve[-10:]) < 0.8 * np.mean(curve[:5])
    config = CompressConfig(prune="vtrans", train="x", batch=16, macs=0.6, variant="faster", refit=False)
    small, _, _ = prune(module, config, [inputs], None, [Batch(tuple(x.numpy() for x in inputs))])
    rows = small.get_submodule("model.bert.encoder.layer.0.attention.self.query").weight
    whole = module.get_submodule("model.bert.encoder.layer.0.attention.self.query").weight
    assert all(any(torch.equal(r, w) for w in whole) for r in rows) or rows.shape[1] < whole.shape[1]


def test_choose_is_within_one_percent() -> None:
    module = FAMILIES["bert"]()
    structure = describe(module)
    size = measure(module, structure, example(module))
    generator = torch.Generator().manual_seed(0)
    alphas = {g.name: torch.randn(g.units, generator=generator) for g in structure.groups}
    for target in (0.3, 0.5, 0.8):
        keep = choose(structure, alphas, lambda s: float(size.parameters(s) / size.parameters()), target, 1)
        got = size.parameters(shares(structure, keep)) / size.parameters()
        assert target - 0.02 < got <= target
    with pytest.raises(UserError, match="cannot be met"):
        choose(structure, alphas, lambda s: float(size.parameters(s) / size.parameters()), 0.001, 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(5, 18), prefix=st.integers(0, 2), heavy=st.booleans())
def test_merge_is_the_weighted_mean(seed: int, count: int, prefix: int, heavy: bool) -> None:
    """Against loops: likest even tokens go into their odd neighbours, sums are kept."""
    generator = torch.Generator().manual_seed(seed)
    x, keys = torch.randn(2, count, 3, generator=generator), torch.randn(2, count, 4, generator=generator)
    weight = torch.randint(1, 4, (2, count), generator=generator).float() if heavy else None
    leave = int(torch.randint(0, (count - prefix) // 2 + 1, (1,), generator=generator))
    got, weights = tokens.merge(x, keys, weight, leave, prefix)
    full = torch.ones(2, count) if weight is None else weight
    assert got.shape == (2, count - leave, 3)
    assert torch.allclose((got * weights[..., None]).sum(1), (x * full[..., None]).sum(1), atol=1e-4)
    assert torch.equal(got[:, :prefix], x[:, :prefix])
    for b in range(2):
        body, key = x[b, prefix:], nn.functional.normalize(keys[b, prefix:], dim=-1)
        scores = key[::2] @ key[1::2].T
        order = scores.max(1).values.argsort(descending=True).tolist()
        sums, amounts = body[1::2] * full[b, prefix:][1::2, None], full[b, prefix:][1::2].clone()
        for source in order[:leave]:
            at = int(scores[source].argmax())
            sums[at] += body[::2][source] * full[b, prefix:][::2][source]
            amounts[at] += full[b, prefix:][::2][source]
        want = torch.cat([x[b, :prefix], body[::2][order[leave:]], sums / amounts[:, None]])
        assert torch.allclose(got[b], want, atol=1e-4)


def test_tokens_meet_the_target() -> None:
    module = FAMILIES["vit"]()
    inputs = example(module, 16)
    small, recipe, row = prune(
        module, CompressConfig(prune="optin", macs=0.6, round_to=2, prune_tokens=True), [inputs], None, None
    )
    assert sum(row["tokens"]) > 0 and 0.5 < row["macs_left"] <= 0.601
    again = rebuild(module, recipe, specs_of(inputs))
    again.load_state_dict(small.state_dict(), strict=True)
    with torch.no_grad():
        assert (
            torch.equal(again.eval()(*inputs), small(*inputs)) and relative_error(small(*inputs), module(*inputs)) < 1
        )
        whole = tokens.merging(module, describe(module), [0, 0])(*inputs)
        assert relative_error(whole, module(*inputs)) < 1e-5


def test_token_macs_are_counted() -> None:
    """The formula against layers that really run with fewer tokens."""
    module = FAMILIES["vit"]()
    inputs = example(module)
    structure = describe(module)
    size = measure(module, structure, inputs)
    merges = tokens.Merges.of(module, structure)
    merged = tokens.merging(module, structure, [3, 4])
    assert tokens.merged_macs(size, structure, {}, 17, [0, 0], merges) == pytest.approx(size.macs())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        merged(*inputs)
    want = (
        counter.get_total_flops() / 2 / len(inputs[0])
    )  # attention and merging are written out there, so torch sees all of it
    assert tokens.merged_macs(size, structure, {}, 17, [3, 4], merges) == pytest.approx(want, rel=1e-6)


def test_mild_targets_by_tokens_alone() -> None:
    module = FAMILIES["vit"]()
    inputs = example(module, 16)
    _, _, row = prune(
        module, CompressConfig(prune="optin", macs=0.97, prune_tokens=True, controls=False), [inputs], None, None
    )
    assert row["macs_left"] <= 0.97


def test_tokens_are_for_vit() -> None:
    module = FAMILIES["swin"]()
    with pytest.raises(UserError, match="ViT and DeiT"):
        prune(module, CompressConfig(prune="optin", macs=0.6, prune_tokens=True), [example(module)], None, None)


def test_vocabulary_rows() -> None:
    module = FAMILIES["bert"]()
    structure = describe(module)
    inputs = example(module)
    rows = seen(structure, module, [inputs])
    assert len(rows) == 90  # the numbers below 1000 stay, and this vocabulary has no others
    few = inputs[0].unique()
    small = shrink(module, structure.vocabulary, few)
    with torch.no_grad():
        assert torch.equal(small(*inputs), module(*inputs))
        other = inputs[0].clone()
        missing = next(t for t in range(90) if t not in set(few.tolist()))
        other[0, 3] = missing
        assert bool(torch.isfinite(small(other, inputs[1])).all())
        table = small.get_submodule(structure.vocabulary)
        gone = [t for t in range(90) if t not in set(few.tolist())]
        whole = module.get_submodule(structure.vocabulary).weight
        assert torch.allclose(table(torch.tensor([missing]))[0], whole[gone].mean(0), atol=1e-6)
    with pytest.raises(UserError, match="encoders of text"):
        seen(describe(FAMILIES["gpt2"]()), FAMILIES["gpt2"](), [inputs])


def _nets() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    x = torch.from_numpy(np.load(CALIB)["x"][:64].astype(np.float32)).reshape(-1, 1, 28, 28) / 255
    resnet = timm.create_model("resnet18", num_classes=10).eval()
    return {
        "fashion": (load(Path(MODEL)).module, (x,)),
        "resnet18": (resnet, (torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)),
    }


@pytest.mark.parametrize("name", ["fashion", "resnet18"])
def test_channels(name: str) -> None:
    module, inputs = _nets()[name]
    small, recipe, row = prune(module, CompressConfig(prune="channels", macs=0.8, round_to=2), [inputs], None, None)
    assert 0.75 < row["macs_left"] <= 0.8 and row["parameters_left"] < 0.95
    again = rebuild(module, recipe, specs_of(inputs))
    again.load_state_dict(small.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs), small(*inputs))
        want, got = module(*inputs), small(*inputs)
    if name == "fashion":  # trained: without any training after the cut most classes stay
        assert float((want.argmax(1) == got.argmax(1)).float().mean()) > 0.8


def test_channels_train(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = _nets()["fashion"]
    config = CompressConfig(prune="channels", macs=0.4, train="x", prune_epochs=20, batch=32, prune_lr=1e-3)
    _, _, raw = prune(module, CompressConfig(prune="channels", macs=0.4), [inputs], None, None)
    _small, _, row = prune(module, config, [inputs], None, [Batch(tuple(x.numpy() for x in inputs))])
    curve = row["training"]["loss"]
    assert raw["macs_left"] == row["macs_left"] and np.mean(curve[-5:]) < 0.5 * np.mean(curve[:5])


def test_context_budget() -> None:
    module = FAMILIES["bert"]()
    context = Context(module, describe(module), [example(module)], 0.7)
    fixed = context.size.macs({g.name: 0.0 for g in context.structure.branches()})
    assert context.budget == pytest.approx(0.7 * context.size.macs() - fixed)


def test_outputs_of_a_cnn_stay() -> None:
    """Two heads, one of them registered first: no class of either goes, and the caller's module stays as it was."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 12)
            self.body = nn.Sequential(
                nn.Conv2d(1, 16, 3),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            self.second = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.first(x), self.second(x)

    module = Heads().train().requires_grad_(False)
    x = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    small, _, row = prune(module, CompressConfig(prune="channels", macs=0.5, round_to=1), [(x,)], None, None)
    assert [tuple(o.shape) for o in small(x)] == [(8, 12), (8, 4)] and row["macs_left"] <= 0.5
    assert module.training and not any(p.requires_grad for p in module.parameters())
