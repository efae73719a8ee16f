"""Integers of TVM against ONNX Runtime's, layer by layer: every quantizer of a network is fed with the same integers, and what it makes is compared.

    python -m bench.runtimes_steps [NAME ...]

So that a rounding tie is counted where it happens, and not in every layer behind it. Writes the part `steps` of bench/runtimes.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.common import BENCH, save, stamp
from bench.runtimes import CONV, integers
from deploy.inputs import examples
from export.parity import cut, session
from hw.candidates import specs_of
from hw.runtime import runtimes


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Activation quantizers whose outputs end in `_u8`, as `export.parity.cut` looks for."""
    stored = {i.name for i in model.graph.initializer}
    renamed = {
        n.output[0]: f"{n.output[0]}_u8"
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in stored
    }
    for node in model.graph.node:
        for rows in (node.input, node.output):
            for index, name in enumerate(rows):
                rows[index] = renamed.get(name, name)
    del model.graph.value_info[:]
    return model


def steps(name: str) -> dict[str, Any]:
    model = named(integers(name))
    values = examples(specs_of(model), 0)
    parts, places = cut(model)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for place in places:
        whole.graph.output.append(onnx.helper.make_tensor_value_info(place, onnx.TensorProto.UINT8, None))
    made = dict(zip(places, session(whole, 1).run(list(places), {specs_of(model)[0].name: values[0]}), strict=True))
    given = values + [made[i.name.removesuffix("_in")] for i in parts.graph.input[len(values) :]]
    for value, array in zip(parts.graph.input, given, strict=True):
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(
                value.name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
        )
    want = session(parts, 1).run(list(places), {i.name: v for i, v in zip(parts.graph.input, given, strict=True)})
    outputs = [o.name for o in parts.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        got = dict(zip(outputs, runtimes()["tvm"].load(parts, 1, Path(folder)).run(given), strict=True))
    gaps = [np.abs(got[p].astype(int) - w.astype(int)) for p, w in zip(places, want, strict=True)]
    return {
        "network": name, "quantizers": len(gaps), "values": int(sum(g.size for g in gaps)), "differ": int(sum((g > 0).sum() for g in gaps)),
        "largest": int(max(g.max() for g in gaps)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    rows = []
    for name in parser.parse_args().names or CONV:
        rows.append(steps(name))
        print(rows[-1], flush=True)
    path = BENCH / "runtimes.json"
    save("runtimes", {**json.loads(path.read_text()), "steps": {**stamp(), "rows": rows}})


if __name__ == "__main__":
    main()
