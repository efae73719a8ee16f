"""ConvBN modes: Tune is Eval in outputs and gradients, whatever the layer; nothing else of the model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from compress.convbn import Deferred, Mode, set_mode
from compress.models.fashion import fashion_cnn
from tests.conftest import FASHION

BOUND = 1e-5


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm statistics and slopes that matter, no dropout."""
    generator = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and m.running_mean is not None:
            m.running_mean.copy_(torch.randn(m.num_features, generator=generator) * 0.1)
            m.running_var.copy_(torch.rand(m.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]
            if m.affine:
                m.weight.data.copy_(torch.rand(m.num_features, generator=generator) * 2 - 0.5)
                m.bias.data.copy_(torch.randn(m.num_features, generator=generator) * 0.1)
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    return net


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-12))


def same(net: nn.Module, *x: Tensor, gate: bool = False) -> nn.Module:
    """Assert that Tune gives Eval's outputs and gradients (of parameters and input); returns the module in Tune mode."""
    tuned = copy.deepcopy(net).train()
    net.train()
    set_mode(net, Mode.EVAL)
    before = {k: v.clone() for k, v in tuned.state_dict().items()}
    set_mode(tuned, Mode.TUNE, gate=gate)
    outs, grads = [], []
    for module in (net, tuned):
        given_ = [v.clone().requires_grad_() for v in x]
        out = module(*given_)
        out = out if isinstance(out, Tensor) else torch.cat([v.flatten() for v in out])
        assert not isinstance(out, Deferred)
        generator = torch.Generator().manual_seed(1)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        outs.append(out)
        grads.append([p.grad for p in (*module.parameters(), *given_)])
    assert float(outs[0].detach().std()) > 0
    assert relative(outs[1], outs[0]) <= BOUND
    top = max(float(g.abs().max()) for g in grads[0] if g is not None)
    for a, b in zip(grads[1], grads[0], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # a gradient that is itself a difference of large ones is compared on the scale of the largest
            assert float((a - b).abs().max()) <= BOUND * max(float(b.abs().max()), 1e-2 * top)
    after = tuned.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    return tuned


CONVS: list[tuple[type, type, int]] = [
    (nn.Conv1d, nn.BatchNorm1d, 1),
    (nn.Conv2d, nn.BatchNorm2d, 2),
    (nn.Conv3d, nn.BatchNorm3d, 3),
    (nn.ConvTranspose1d, nn.BatchNorm1d, 1),
    (nn.ConvTranspose2d, nn.BatchNorm2d, 2),
    (nn.ConvTranspose3d, nn.BatchNorm3d, 3),
]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CONVS),
    st.sampled_from([(4, 6, 1), (4, 8, 2), (6, 6, 6), (6, 12, 6), (1, 3, 1)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["zeros", "reflect"]),
)
def test_every_convolution(
    kinds: tuple[type, type, int],
    channels: tuple[int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    bias: bool,
    affine: bool,
    mode: str,
) -> None:
    conv, norm, dims = kinds
    transposed = "Transpose" in conv.__name__
    cin, cout, groups = channels
    if transposed:
        padding = min(padding, dilation * (kernel - 1))
        mode = "zeros"
    torch.manual_seed(kernel)
    layer = conv(cin, cout, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias, padding_mode=mode)
    net = lively(nn.Sequential(layer, norm(cout, affine=affine), nn.ReLU()))
    net[1].bias is not None and net[1].bias.data.add_(0.5)  # type: ignore[union-attr, operator]
    same(net, torch.randn(2, cin, *[6] * dims))


def test_linear() -> None:
    same(lively(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))), torch.randn(9, 5))


def test_linear_whose_channels_are_not_its_outputs() -> None:
    """[N, L, C]: BatchNorm1d normalises L."""
    same(lively(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4))), torch.randn(3, 4, 5))


class Shared(nn.Module):
    """One convolution, a BatchNorm for every level, as in detection heads; control flow; an output used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.other = nn.Conv2d(4, 4, 1)
        self.after = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm in self.norms:
            y = F.relu(norm(self.conv(y)))
        z = self.other(y)
        if z.shape[2] > 2:
            y = self.after(z) + z * z.mean()
        return F.batch_norm(input=self.other(y), running_mean=torch.zeros(4), running_var=torch.ones(4), eps=1e-3)


def test_shared_layers_control_flow_and_outputs_used_twice() -> None:
    tuned = same(lively(Shared()), torch.randn(2, 4, 6, 6))
    assert not tuned.conv.__dict__["forward"].off  # type: ignore[operator, union-attr]
    assert tuned.other.__dict__["forward"].off  # type: ignore[operator, union-attr]


class Detector(nn.Module):
    """ResNet18 features, three transposed convolutions (one grouped, one depthwise), two heads: CenterNet's shape."""

    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.resnet18()
        self.features = nn.Sequential(*list(net.children())[:-2])
        rows: list[nn.Module] = []
        for cin, cout, groups in ((512, 64, 4), (64, 64, 64), (64, 32, 1)):
            rows += [nn.ConvTranspose2d(cin, cout, 4, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
        self.neck = nn.Sequential(*rows)
        self.heat, self.size = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.neck(self.features(x))
        return self.heat(y), self.size(y)


@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v2,
        Detector,
        pytest.param(torchvision.models.resnet50, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("gate", [False, True])
def test_networks(make: Callable[[], nn.Module], gate: bool) -> None:
    torch.manual_seed(3)
    # float64: the sum of a deep network's rounding would hide a wrong formula in float32
    same(lively(make()).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64), gate=gate)


def test_float32_on_a_network() -> None:
    torch.manual_seed(3)
    same(lively(torchvision.models.resnet18()), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_trained_weights_and_real_images(kind: torch.dtype) -> None:
    """The demonstration CNN; ImageNet weights are in bench/convbn.py real."""
    net = fashion_cnn().to(kind)
    net.load_state_dict(load_file(FASHION / "fashion_cnn.safetensors"))
    x = np.load(FASHION / "test1000.npz")["x"][:8].astype(np.float64) / 255
    same(net, torch.from_numpy(x).reshape(-1, 1, 28, 28).to(kind))


def test_the_optimizer_does_not_notice() -> None:
    """Switching between Eval and Tune in the middle of training changes nothing."""
    torch.manual_seed(0)
    one = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))).double()
    two = copy.deepcopy(one)
    optimizers = [torch.optim.Adam(n.parameters(), 1e-3) for n in (one, two)]
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    set_mode(one, "eval")
    for step in range(6):
        set_mode(two, "tune" if step % 2 else "eval", gate=False)
        for net, optimizer in zip((one, two), optimizers, strict=True):
            optimizer.zero_grad()
            net.train()(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert relative(b.double(), a.double()) < 1e-9
    assert int(one[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_train_mode_comes_back() -> None:
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    set_mode(net, "tune")
    set_mode(net, "train")
    net.train()(torch.randn(2, 3, 4, 4))
    assert int(net[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert "forward" not in net[0].__dict__ and not net._forward_hooks


def test_the_gate_follows_the_sizes() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8))
    set_mode(net, "tune", gate=True)
    kept: list[int] = []
    for side in (2, 8):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            net(torch.randn(1, 4, side, side, requires_grad=True))
        # at 2x2 the output (32) is smaller than the weight (288): Eval, Y is kept; at 8x8 (512) Tune, w' is kept in its place
        assert (8 * side * side in kept) == (side == 2)
        kept.clear()


def test_deploy_folds_what_can_be_folded() -> None:
    torch.manual_seed(0)
    net = lively(Detector()).train()
    x = torch.randn(1, 3, 64, 64)
    set_mode(net, "eval")
    before = net(x)[0]
    names = set_mode(net, "deploy", example=(x,))
    assert len(names) == 23
    assert relative(net(x)[0], before) <= BOUND
    shared = lively(Shared())
    assert set_mode(shared, "deploy", example=(torch.randn(1, 4, 6, 6),)) == []
    with pytest.raises(ValueError, match="example"):
        set_mode(shared, "deploy")


def test_a_changed_input_is_noticed() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            x.add_(1)
            return self.norm(y)  # type: ignore[no-any-return]

    net = Careless()
    set_mode(net, "tune", gate=False)
    with pytest.raises(RuntimeError, match="changed in place"):
        net(torch.randn(1, 2, 3, 3))
