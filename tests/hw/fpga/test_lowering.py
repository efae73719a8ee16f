"""The integer graph equals the Brevitas model on every output; what cannot be taken is refused at once, by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import brevitas, data, exported, graph_of, network
from torch import nn

from bench.networks import NAMED, Act, Net, layer, ready
from hw.fpga import ir, reference
from hw.fpga.lower import lower


def _equal(name: str, samples: int = 6) -> None:
    net, model = network(name)
    graph = graph_of(model)
    x = data(net, samples)
    want = brevitas(net, x)
    got = reference.run(graph, [x])[0]
    assert want.std() > 0
    assert np.abs(got - want).max() <= 1e-9 * np.abs(want).max()


@pytest.mark.parametrize("seed", range(5))
def test_random_networks(seed: int) -> None:
    _equal(str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 205))
def test_200_random_networks(seed: int) -> None:
    _equal(str(seed))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_networks(name: str) -> None:
    _equal(name)


def test_no_floats_are_left() -> None:
    graph = graph_of(network("resnet-8")[1])
    for node in graph.nodes:
        for value in vars(node.op).values():
            if isinstance(value, np.ndarray):
                assert value.dtype.kind == "i", (node.name, value.dtype)


def test_ranges_hold() -> None:
    net, model = network("resnet-8")
    graph = graph_of(model)
    values = reference.execute(graph, reference.quantize(graph, [data(net, 4)]))
    for name, v in values.items():
        t = graph.tensors[name]
        assert v.min() >= t.low and v.max() <= t.high and v.shape[1:] == t.shape


class _Ties(nn.Module):
    """Scales that are powers of two, so that sums fall on rounding ties all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = Act(6, True), Act(6, True), Act(4, True)
        for act, scale in ((self.a, 0.25), (self.b, 0.5), (self.out, 1.0)):
            act.set_scale(scale)
        self.conv = layer(nn.Conv2d(2, 3, 1), 4)
        self.pool = nn.AvgPool2d(2)
        self.mean = Act(4, True)
        self.mean.set_scale(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(self.a(x) + self.b(x))
        return self.conv(self.mean(self.pool(y)))


def test_rounding_ties_are_those_of_the_graph() -> None:
    torch.manual_seed(0)
    net = _Ties().eval()
    graph = graph_of(exported(net, (2, 6, 6)))
    x = torch.randint(-40, 40, (16, 2, 6, 6)) / 8
    with torch.no_grad():
        want = net.double()(x.double()).numpy()
    assert np.abs(reference.run(graph, [x.numpy()])[0] - want).max() <= 1e-12


class _Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = Act(8, False)
        self.conv = layer(nn.Conv2d(3, 4, 3), 4)
        self.plain = nn.Conv2d(3, 4, 3)
        self.silu = nn.SiLU()
        self.mid = Act(8, True)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        return self.up(self.mid(self.silu(self.conv(x))) + self.mid(self.plain(x)))


def test_everything_in_the_way_is_told_at_once() -> None:
    torch.manual_seed(0)
    net = _Refused().eval()
    net(torch.rand(1, 3, 8, 8))
    problems = {p.module: p for p in lower(exported(net, (3, 8, 8))).problems}
    assert set(problems) >= {"mid", "plain", "up"}
    assert "float" in problems["plain"].reason and "quantize" in problems["plain"].remedy
    assert "transposed" in problems["up"].reason


def test_shuffles_cost_nothing_before_a_layer() -> None:
    """A channel shuffle in front of a convolution is folded into its weights."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layer(nn.Conv2d(6, 4, 3), 4)
            self.shuffle = nn.ChannelShuffle(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.shuffle(x))

    torch.manual_seed(0)
    net = ready(Net([Shuffled()], None, (6, 7, 7)))
    graph = graph_of(exported(net, net.shape))
    assert [n.kind for n in graph.nodes] == ["Conv"]
    x = data(net, 3)
    assert np.abs(reference.run(graph, [x])[0] - brevitas(net, x)).max() < 1e-12


def test_bits_for() -> None:
    assert ir.bits_for(0, 255) == (8, False)
    assert ir.bits_for(-128, 127) == (8, True)
    assert ir.bits_for(-1, 0) == (1, True)
    assert ir.bits_for(-129, 0) == (9, True)
    assert ir.bits_for(0, 0) == (1, False)


class _Odd(nn.Module):
    """A conv, then what `end` makes of it."""

    def __init__(self, end: object) -> None:
        super().__init__()
        self.act, self.out = Act(8, False), Act(4, True)
        self.conv, self.fc = layer(nn.Conv2d(2, 3, 3, padding=1), 4), layer(nn.Linear(3 * 25 * 2, 4), 4)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self, self.conv(self.act(x)))  # type: ignore[operator]


def _odd(end: object) -> tuple[_Odd, onnx.ModelProto]:
    torch.manual_seed(0)
    net = _Odd(end).eval()
    with torch.no_grad():
        net(torch.rand(1, 2, 5, 5))
    return net, exported(net, (2, 5, 5))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda m, y: m.out(y.softmax(1)), "only the host applies"),
        (lambda m, y: m.out(y.to(torch.int32).float()), "cutting them off"),
        (lambda m, y: m.out(y) * y.mean((2, 3), keepdim=True).sigmoid(), "different shapes"),
    ],
)
def test_what_would_be_wrong_is_refused(end: object, said: str) -> None:
    _, model = _odd(end)
    assert any(said in p.reason for p in lower(model).problems)


@pytest.mark.parametrize(
    "end",
    [
        lambda m, y: m.fc(torch.cat([m.out(y).flatten(1), m.out(y).flatten(1)], 1)),
        lambda m, y: m.out(y).amax((2, 3)),
        lambda m, y: m.out(y + 0.5).softmax(1),
        lambda m, y: m.out(torch.nn.functional.elu(m.out(y))),
        lambda m, y: m.out(torch.cat([m.out(y)[:, 2:], m.out(y)[:, :2]], 1) + m.out(y)),
        lambda m, y: m.out(y.flatten(2).transpose(1, 2)),
    ],
)
def test_odd_ends_are_exact(end: object) -> None:
    net, model = _odd(end)
    x = torch.rand(5, 2, 5, 5, generator=torch.Generator().manual_seed(3))
    got = reference.run(graph_of(model), [x.numpy()])[0]
    with torch.no_grad():
        want = net.double()(x.double()).numpy()
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-9 * np.abs(want).max()


def test_refusals_behind_a_refusal_are_told_too() -> None:
    def end(m: _Odd, y: torch.Tensor) -> torch.Tensor:
        y = m.out(y * y.mean((2, 3), keepdim=True))
        return m.out(torch.nn.functional.layer_norm(m.out(torch.nn.functional.lp_pool2d(y, 2, 1)), (5,))[:, :2])

    _, model = _odd(end)
    assert len(lower(model).problems) >= 2


@pytest.mark.parametrize(
    ("mode", "want"),
    [("ROUND", [-2, 2, 2, -1]), ("FLOOR", [-3, 1, 2, -1]), ("CEIL", [-2, 2, 3, 0]), ("UP", [-3, 2, 3, -1]), ("DOWN", [-2, 1, 2, 0]), ("HALF_UP", [-3, 2, 3, -1]), ("HALF_DOWN", [-2, 1, 2, -1])],
)  # fmt: skip
def test_rounding_modes_are_those_of_qonnx(mode: str, want: list[int]) -> None:
    from qonnx.custom_op.general.quant import resolve_rounding_mode

    from hw.fpga.lower.convert import round_by

    x = np.array([-2.5, 1.5, 2.5, -0.6])
    assert round_by(mode)(x).tolist() == resolve_rounding_mode(mode)(x).tolist() == want
