"""An integer graph and a fold per layer, made a netlist."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from hw.fpga import ir
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Fold, Layer, Target
from hw.fpga.netlist import Netlist, Stream

MOST_PORT_BITS = 512


def layer_of(graph: ir.Graph, node: ir.Node) -> Layer:
    return Layer(node, tuple(graph.tensors[t] for t in node.inputs), graph.tensors[node.output])


def assemble(
    graph: ir.Graph,
    folds: Mapping[str, Fold],
    target: Target,
    depths: Mapping[str, int] | None = None,
    split: bool = True,
) -> Netlist:
    """Build every layer in order; streams read several times are forked. depths: of FIFOs by name, 2 where not given.
    split: see Netlist."""
    net = Netlist(depths=dict(depths or {}), port_bits=target.memory, split=split)
    ready: dict[str, list[Stream]] = {}
    for source in graph.inputs:
        tensor = graph.tensors[source.tensor]
        par = _input_par(graph, source.tensor, folds)
        stream = Stream(source.tensor, par, tensor.bits, tensor.signed, tensor.size // par, source.tensor)
        net.inputs.append(stream)
        ready[source.tensor] = net.fork(stream, max(1, graph.uses(source.tensor)))
    for node in graph.nodes:
        net.layer = node.name
        layer = layer_of(graph, node)
        inputs = [ready[t].pop() for t in node.inputs]
        out = blocks()[node.kind].build(net, layer, folds[node.name], inputs, target)
        out = Stream(out.name, out.par, out.bits, out.signed, out.beats, node.output)
        net.layer = ""
        ready[node.output] = net.fork(out, graph.uses(node.output))
    for k, out_spec in enumerate(graph.outputs):
        stream = ready[out_spec.tensor].pop()
        net.outputs.append(net.buffer(net.convert(stream, _port(stream.par, stream.bits)), f"out{k}_fifo"))
    return net


def _input_par(graph: ir.Graph, tensor: str, folds: Mapping[str, Fold]) -> int:
    """Elements per beat of a graph input: what its first reader takes."""
    readers = graph.consumers(tensor)
    if not readers:
        return 1
    fold, op = folds[readers[0].name], readers[0].op
    par = fold.simd if isinstance(op, ir.Gather) or (isinstance(op, ir.Conv) and not op.depthwise) else fold.pe
    return _port(gcd(par, graph.tensors[tensor].channels), graph.tensors[tensor].bits)


def _port(par: int, bits: int) -> int:
    """Elements of a beat at the design's edge: at most what an AXI DMA stream holds."""
    return max(d for d in range(1, par + 1) if par % d == 0 and (d == 1 or d * bits <= MOST_PORT_BITS))
