"""The integer graph: what the hardware computes, with no float in it. It is also the reference that every backend equals.

A tensor is one sample of integers in [height, width, channels] order with a proven range. Vectors are [1, 1, channels].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np


def bits_for(low: int, high: int) -> tuple[int, bool]:
    """The least number of bits that holds every integer from `low` to `high`, and whether they must be signed."""
    if low >= 0:
        return max(1, int(high).bit_length()), False
    return max(int(-low - 1).bit_length(), int(max(high, 0)).bit_length()) + 1, True


@dataclass(frozen=True)
class Tensor:
    """Shape [H, W, C] and the range of values, both ends included."""

    shape: tuple[int, int, int]
    low: int
    high: int

    @property
    def bits(self) -> int:
        return bits_for(self.low, self.high)[0]

    @property
    def signed(self) -> bool:
        return self.low < 0

    @property
    def channels(self) -> int:
        return self.shape[2]

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def size(self) -> int:
        return self.pixels * self.channels


@dataclass(frozen=True)
class Window:
    """Geometry of a sliding window: kernel, stride and dilation as (y, x); padding as (top, left, bottom, right)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def size(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        return (
            (height + self.pads[0] + self.pads[2] - spans[0]) // self.stride[0] + 1,
            (width + self.pads[1] + self.pads[3] - spans[1]) // self.stride[1] + 1,
        )


@dataclass(frozen=True)
class Conv:
    """weight: integers [out, ky, kx, in / groups]; padding adds zeros. groups is 1, or the channels (depthwise).

    bound: 0, or the largest distance of a deformable convolution, whose second input [H, W, 1] gives each place's distance in
    place of the window's dilation; stride 1, square odd kernel, the output as large as the input, zeros outside.
    """

    weight: np.ndarray
    window: Window = Window()
    groups: int = 1
    weight_bits: int = 8
    bound: int = 0

    @property
    def depthwise(self) -> bool:
        return self.groups > 1


@dataclass(frozen=True)
class Pool:
    """'max' (padding never wins) or 'sum' (padding adds zeros) over a window, per channel."""

    kind: str
    window: Window


@dataclass(frozen=True)
class GlobalPool:
    """'max' or 'sum' over all pixels, per channel."""

    kind: str


@dataclass(frozen=True)
class Thresholds:
    """out[c] = low + the number of thresholds[c] that are <= in[c]; thresholds int64 [C or 1, levels - 1], ascending."""

    thresholds: np.ndarray
    low: int


@dataclass(frozen=True)
class Scale:
    """out[c] = clip((in[c] * multiplier[c] + offset[c]) >> shift, low, high); int64 [C or 1] each."""

    multiplier: np.ndarray
    offset: np.ndarray
    shift: int
    low: int
    high: int


@dataclass(frozen=True)
class Table:
    """out[c] = table[c, in[c] - start]; table int64 [C or 1, values]."""

    table: np.ndarray
    start: int


@dataclass(frozen=True)
class Add:
    """out[c] = clip((sum_i in_i[c] * multipliers[i][c] + offset[c]) >> shift, low, high); multipliers int64 [inputs, C or 1]."""

    multipliers: np.ndarray
    offset: np.ndarray
    shift: int
    low: int
    high: int


@dataclass(frozen=True)
class Concat:
    """Channels of all inputs one after the other."""


@dataclass(frozen=True)
class Gather:
    """out[c] = in[index[c]]: slices, splits and shuffles."""

    index: tuple[int, ...]


@dataclass(frozen=True)
class Upsample:
    """Every pixel repeated (y, x) times."""

    factor: tuple[int, int]


@dataclass(frozen=True)
class Flatten:
    """[H, W, C] to [1, 1, H * W * C] in stream order."""


@dataclass(frozen=True)
class TopK:
    """The channels of the k largest values of every pixel, largest first, of equal ones the lower channel first."""

    k: int


Op = TopK | Conv | Pool | GlobalPool | Thresholds | Scale | Table | Add | Concat | Gather | Upsample | Flatten


@dataclass(frozen=True)
class Node:
    """One operation. `label` is the torch module (or ONNX node) that it came from."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    output: str
    label: str = ""

    @property
    def kind(self) -> str:
        return type(self.op).__name__


@dataclass(frozen=True)
class Output:
    """What the host does with an integer result: value = v * scale[c] + offset[c], channels taken in `order`, then `shape`.

    scale, offset: float64 [C]. order: position in the stream of every element of the flattened float output.
    after: names of operators that the host applies last (Softmax, Sigmoid, ArgMax), in order. labels: channel numbers.
    """

    tensor: str
    name: str
    scale: np.ndarray
    offset: np.ndarray
    order: np.ndarray
    shape: tuple[int, ...]
    after: tuple[tuple[str, int], ...] = ()
    labels: bool = False


@dataclass(frozen=True)
class Input:
    """How the host makes an integer input: v = clip(rint((x * gain[c] + offset[c]) / scale), low, high), channels last.

    shape: of the float input, as in ONNX. gain, offset: float64 [C].
    """

    tensor: str
    name: str
    scale: float
    shape: tuple[int, ...]
    gain: np.ndarray
    offset: np.ndarray


@dataclass
class Graph:
    """Nodes in execution order, tensors by name, how the host feeds and reads it."""

    inputs: list[Input] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def producer(self, tensor: str) -> Node | None:
        return next((n for n in self.nodes if n.output == tensor), None)

    def consumers(self, tensor: str) -> list[Node]:
        return [n for n in self.nodes if tensor in n.inputs]

    def uses(self, tensor: str) -> int:
        """How many streams a tensor must feed: one per reading port, one per output of the graph."""
        return sum(n.inputs.count(tensor) for n in self.nodes) + sum(o.tensor == tensor for o in self.outputs)

    def replace_node(self, old: Node, **changes: object) -> Node:
        new = replace(old, **changes)  # type: ignore[arg-type]
        self.nodes[self.nodes.index(old)] = new
        return new

    def dead(self) -> Iterator[Node]:
        """Nodes whose result nobody reads."""
        return (n for n in self.nodes if not self.uses(n.output))

    def prune(self) -> None:
        """Remove nodes whose result nobody reads, until there is none."""
        while unused := list(self.dead()):
            for node in unused:
                self.nodes.remove(node)
                del self.tensors[node.output]
