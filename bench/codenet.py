"""The detector on generated images: the ladder of spatial operators, three seeds, float training on this CPU.

    python -m bench.codenet ladder [--workers 2] [--seeds 3] [--operators a,b]   -> bench/codenet_ladder.json
    python -m bench.codenet example                                             -> examples/detection/
    python -m bench.codenet block                                               -> bench/codenet_block.json
    python -m bench.codenet latency                                             -> bench/codenet_latency.json
    python -m bench.codenet fabric                                              -> bench/codenet_fabric.json
    python -m bench.codenet folding                                             -> bench/codenet_folding.json
    python -m bench.codenet quantize [--first 0] [--seeds 3]                                -> bench/codenet_quantize.json

block: the deformable depthwise layer in hardware beside a plain one of the same size and folds: cycles simulated (Verilator,
bit-exact, random distances), cells counted (Yosys, ultra96).

fabric: `deploy build` of configuration a for ultra96 at 200 MHz (an assumption: no vendor tool here) and 322 frames/s. Random weights with varied activations and distances: speed and cells depend on neither.

folding: configurations a to e by the folding model, as fast as the usual budget of the part allows, and as if block RAM were no limit.

latency: configurations a (256 x 256) and small in ONNX Runtime, one thread: float with the standard DeformConv, float with rows
of a table, W4A8; random weights with distances of every size (speed depends on neither).

quantize: the ladder's trained `deform` network at W4A8: float, post-training, fine-tuned with distillation on 4,000 of the training
canvases (labels unused), then the same as ONNX Runtime's integers, as the integer reference, and in RTL on a sample.

example: the ladder's trained `deform` network, 24 training canvases to calibrate with, 6 test canvases.

ladder: 10,000 training and 1,000 test canvases of 128 x 128 pixels with Fashion-MNIST items (compress/codenet/canvas.py), composed of the
60,000 training and the 10,000 test items: no item is in both. Configuration `small`, the same recipe for every operator; nothing
is chosen on the test canvases. Runs that the JSON already holds are skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from bench.common import BENCH, fashion, save, stamp
from compress.api import compress
from compress.codenet.boxes import Scene
from compress.codenet.canvas import generate
from compress.codenet.network import OPERATORS, CoDeNet, codenet
from compress.codenet.train import TrainConfig, score, train
from compress.config import CompressConfig
from compress.deform import DeformConv2d
from compress.quantize.plan import count_macs
from deploy.data import Batch
from export.parity import session
from export.torch2onnx import export_float, export_quantized

ROOT = Path(__file__).resolve().parents[1]
CONFIGS_FABRIC = ("a", "b", "c", "d", "e")
CLASSES, TRAIN, TEST = 10, 10_000, 1_000
CONFIG = TrainConfig(epochs=6, batch=16, lr=3e-3)


def scenes(part: str, count: int) -> list[Scene]:
    """Canvases of the training ('train') or the test ('t10k') items."""
    return generate(*fashion(part), count, seed=0 if part == "train" else 1)


def weights_file(operator: str, seed: int) -> Path:
    return Path(tempfile.gettempdir()) / f"deploy-bench-codenet-{operator}-{seed}.safetensors"


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Train and score one operator with one seed."""
    operator, seed = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = codenet("small", CLASSES, operator)
    start = time.monotonic()
    history = train(
        net, scenes("train", TRAIN), CLASSES, TrainConfig(CONFIG.epochs, CONFIG.batch, CONFIG.lr, seed=seed)
    )
    seconds = round(time.monotonic() - start)
    result = score(net, scenes("t10k", TEST), CLASSES)
    save_model(net, str(weights_file(operator, seed)))
    example = torch.zeros(1, 3, net.config.resolution, net.config.resolution)
    return {
        "operator": operator, "seed": seed, **result, "loss": history, "seconds": seconds,
        "parameters": sum(p.numel() for p in net.parameters()), "mmacs": round(sum(count_macs(net, (example,)).values()) / 1e6, 2),
    }  # fmt: skip


def ladder(args: argparse.Namespace) -> None:
    path = BENCH / "codenet_ladder.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    done = {(r["operator"], r["seed"]) for r in rows}
    chosen = args.operators.split(",") if args.operators else list(OPERATORS)
    jobs = [(o, s) for s in range(args.seeds) for o in chosen if (o, s) not in done]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for row in pool.imap_unordered(one, jobs):
            rows.append(row)
            print({k: v for k, v in row.items() if k != "loss"}, flush=True)
            head = {
                **stamp(),
                "train": TRAIN,
                "test": TEST,
                "epochs": CONFIG.epochs,
                "batch": CONFIG.batch,
                "lr": CONFIG.lr,
            }
            save(
                "codenet_ladder",
                {**head, "rows": sorted(rows, key=lambda r: (list(OPERATORS).index(r["operator"]), r["seed"]))},
            )


def example(args: argparse.Namespace) -> None:
    folder = ROOT / "examples" / "detection"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    state = {k: v for k, v in load_file(weights_file("deform", 0)).items() if not k.endswith("num_batches_tracked")}
    named = {"arch": "deploy:codenet", "arch_args": json.dumps({"config": "small", "classes": CLASSES})}
    save_file(state, folder / "codenet_small.safetensors", named)
    np.savez_compressed(folder / "calib.npz", x=np.stack([s.image for s in scenes("train", 24)]))
    for k, scene in enumerate(scenes("t10k", 6)):
        Image.fromarray(scene.image).save(folder / "images" / f"{k}.png")


def block(args: argparse.Namespace) -> None:
    import boards
    from bench.networks import one_node
    from hw.fpga import fold, ir, simulate, synthesize
    from hw.fpga.assemble import assemble, layer_of
    from hw.fpga.blocks import blocks

    board, rows = boards.get("ultra96"), []
    rng = np.random.default_rng(0)
    for side, channels, pe, taps in (
        (32, 128, 2, 1),
        (32, 128, 2, 3),
        (32, 128, 2, 9),
        (64, 64, 16, 1),
        (64, 64, 16, 9),
    ):
        weight = rng.integers(-7, 8, (channels, 3, 3, 1))
        image, far = ir.Tensor((side, side, channels), 0, 255), ir.Tensor((side, side, 1), 0, 7)
        plain = one_node(ir.Conv(weight, ir.Window((3, 3), pads=(1, 1, 1, 1)), channels, 4), image)
        deform = one_node(ir.Conv(weight, ir.Window((3, 3)), channels, 4, 7), image, far)
        row: dict[str, Any] = {"side": side, "channels": channels, "pe": pe, "taps": taps}
        for name, graph in (("plain", plain), ("deformable", deform)):
            target = fold.target_of(board)
            folds = blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target)
            form = "lines" if name == "plain" and taps > 1 else ""
            chosen = next(f for f in folds if (f.pe, f.simd, f.dsp, f.form) == (pe, taps, False, form))
            with tempfile.TemporaryDirectory() as work:
                net = assemble(graph, {"y": chosen}, target, {})
                inputs = simulate.random_inputs(graph, 3, 1)
                measured, _ = simulate.verify(graph, net, inputs, Path(work) / "sim", 0)
                cells = synthesize.flat(net, board, Path(work) / "syn")
            row[name] = {"interval": measured.interval, "predicted": chosen.cycles, "lut": cells.lut, "ff": cells.ff,
                         "bram18": cells.bram18, "dsp": cells.dsp, "estimate": [round(chosen.lut), chosen.bram18]}  # fmt: skip
        row["cycles_ratio"] = round(row["deformable"]["interval"] / row["plain"]["interval"], 3)
        row["lut_ratio"] = round(row["deformable"]["lut"] / row["plain"]["lut"], 3)
        rows.append(row)
        print(row, flush=True)
        save("codenet_block", {**stamp(), "board": "ultra96", "rows": rows})


@torch.no_grad()
def random_detector(config: str, classes: int = 20) -> CoDeNet:
    """Random weights whose activations vary: kaiming, BatchNorm statistics of the data, distances from 0 to the bound."""
    torch.manual_seed(0)
    net = codenet(config, classes)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.3
    for m in net.modules():
        if isinstance(m, DeformConv2d):
            nn.init.normal_(m.offset.weight, 0, 1.5 / m.offset.in_channels**0.5)
            nn.init.constant_(m.offset.bias, 2.5)
    net.train()
    for _ in range(4):
        net(torch.randn(4, 3, net.config.resolution, net.config.resolution))
    return net.eval()


def latency(args: argparse.Namespace) -> None:
    from export.stage import convert
    from hw.latency import conditions, measure

    rows = []
    for config in ("small", "a"):
        net = random_detector(config)
        side = net.config.resolution
        rng = np.random.default_rng(0)
        batches = [Batch((rng.normal(size=(2, 3, side, side)).astype(np.float32),)) for _ in range(2)]
        done = compress(net, CompressConfig(bits=4, rounding="nearest"), inputs=net.inputs, calibration=batches)
        files, _ = convert(net, done.module, net.inputs)
        standard = copy.deepcopy(net)
        for m in standard.modules():
            if isinstance(m, DeformConv2d):
                m.forward = m.reference  # type: ignore[method-assign]
        models = {
            "float, DeformConv": export_float(standard, net.inputs)[0],
            "float, rows": files["float.onnx"],
            "W4A8": files["model.onnx"],
        }
        assert "DeformConv" in [n.op_type for n in models["float, DeformConv"].graph.node]
        x = batches[0].inputs[0][:1]
        calls = {}
        for name, model in models.items():
            run = session(model, 1)
            calls[name] = lambda run=run: run.run(None, {"image": x})  # noqa: B023
        a, b = (calls[n]()[0] for n in ("float, DeformConv", "float, rows"))
        times = measure(calls, "float, DeformConv", args.samples)
        rows.append({"config": config, "resolution": side, "error": float(np.abs(a - b).max() / np.abs(a).max()),
                     "times": {n: asdict(t) for n, t in times.items()}, "bytes": {n: m.ByteSize() for n, m in models.items()}})  # fmt: skip
        print(rows[-1], flush=True)
        save("codenet_latency", {**stamp(), "samples": args.samples, "conditions": conditions(1), "rows": rows})


PAPER = {"a": 32.2, "b": 26.9, "c": 9.3, "d": 5.2, "e": 4.6}  # frames per second, CoDeNet v2, table 3


def _qonnx(config: str) -> tuple[onnx.ModelProto, float]:
    """(W4A8 graph of a configuration with random weights, GMAC of a frame)."""
    net = random_detector(config)
    side = net.config.resolution
    batches = [Batch((torch.randn(2, 3, side, side).numpy(),)) for _ in range(2)]
    settings = CompressConfig(bits=4, first_last_bits=4, rounding="nearest", equalize="off")
    done = compress(net, settings, inputs=net.inputs, calibration=batches)
    macs = sum(count_macs(net, (torch.zeros(1, 3, side, side),)).values())
    return export_quantized(done.module, net.inputs)[0], macs / 1e9


def fabric(args: argparse.Namespace) -> None:
    clock = 200.0
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model, gmacs = _qonnx("a")
        (work / "codenet_a.qonnx.onnx").write_bytes(model.SerializeToString())
        start = time.monotonic()
        command = [
            "build",
            str(work / "codenet_a.qonnx.onnx"),
            "--board",
            "ultra96",
            "--clock",
            "200",
            "--target-fps",
            "322",
            "--no-bitstream",
            "-o",
        ]
        subprocess.run([sys.executable, "-m", "deploy", *command, str(work / "out")], check=True)
        record = json.loads((work / "out" / "build.json").read_text())
        seconds = round(time.monotonic() - start)
    rows = [
        [r["label"], r["kind"], r["form"], r["pe"], r["simd"], r["cycles"], *r["cells"].values()]
        for r in record["rows"]
    ]
    built = {
        "gmacs": gmacs, "seconds": seconds, "clock_mhz": clock, "layers": rows, "columns": ["label", "kind", "form", "pe", "simd", "cycles", *record["cells"]],
        **{k: record[k] for k in ("fps", "measured", "cells", "share", "memory", "estimate", "depths")},
    }  # fmt: skip
    save("codenet_fabric", {**stamp(), "board": "ultra96", "paper_fps": PAPER, "a": built})


def folding(args: argparse.Namespace) -> None:
    import boards
    from hw.fpga import fold
    from hw.fpga.lower import lower

    clock, board, found = 200.0, boards.get("ultra96"), []
    usual = fold.Budget.of(board)
    for config in CONFIGS_FABRIC:
        graph, gmacs = _qonnx(config)
        lowered = lower(graph)
        assert not lowered.problems
        row: dict[str, Any] = {"config": config, "gmacs": gmacs}
        for name, budget in (("usual", usual), ("any memory", replace(usual, bram18=1e6))):
            chosen = fold.search(lowered.graph, board, None, budget)
            row[name] = {"interval": chosen.interval, "fits": chosen.fits, "fps": clock * 1e6 / chosen.interval, "lut": round(chosen.lut), "dsp": chosen.dsp, "bram18": chosen.bram18, "stream": chosen.stream}  # fmt: skip
        found.append(row)
        print(row, flush=True)
        save("codenet_folding", {**stamp(), "board": "ultra96", "clock_mhz": clock, "paper_fps": PAPER, "rows": found})


def quantize(args: argparse.Namespace) -> None:
    import boards
    from compress.codenet.decode import decode
    from compress.codenet.score import average_precision
    from compress.codenet.train import normalise
    from export.stage import convert
    from hw.fpga import fold, reference, simulate
    from hw.fpga.assemble import assemble
    from hw.fpga.lower import lower

    torch.set_num_threads(2)
    training, test = scenes("train", 4000), scenes("t10k", TEST)
    x = normalise([s.image for s in training])
    batches = [Batch((v.numpy(),)) for v in x.split(50)]
    pixels = normalise([s.image for s in test]).numpy()
    path = BENCH / "codenet_quantize.json"
    rows = [r for r in (json.loads(path.read_text())["rows"] if path.is_file() else []) if r["seed"] < args.first]
    for seed in range(args.first, args.seeds):
        net = codenet("small", CLASSES)
        load_model(net, str(weights_file("deform", seed)))
        net.eval()
        row: dict[str, Any] = {"seed": seed, "float": score(net, test, CLASSES)}
        for name, config in (
            ("ptq", CompressConfig(bits=4)),
            ("qat", CompressConfig(bits=4, finetune=True, epochs=2, batch=32, loss="compress.codenet.loss:distill")),
        ):
            start = time.monotonic()
            done = compress(net, config, inputs=net.inputs, calibration=batches[:6], training=batches)
            row[name] = {**score(done.module, test, CLASSES), "seconds": round(time.monotonic() - start)}
            print(name, row[name], flush=True)
        files, record = convert(net, done.module, net.inputs, dynamic_batch=False)
        run = session(files["model.onnx"])
        found = [decode(run.run(None, {"image": pixels[k : k + 1]})[0][0]) for k in range(TEST)]
        row["onnxruntime"] = average_precision(test, found, CLASSES)
        row["parity"] = record["parity"]
        graph = lower(files["model.qonnx.onnx"]).graph
        outputs = np.concatenate([reference.run(graph, [pixels[k : k + 20]])[0] for k in range(0, TEST, 20)])
        row["integer reference"] = average_precision(test, [decode(o) for o in outputs], CLASSES)
        print({k: row[k] for k in ("onnxruntime", "integer reference")}, flush=True)
        board = boards.get("ultra96")
        folding = fold.search(graph, board, 300_000)
        target = fold.target_of(board)
        with tempfile.TemporaryDirectory() as work:
            depths = simulate.size_fifos(graph, folding.folds, target, Path(work) / "size", 0)
            design = assemble(graph, folding.folds, target, depths)
            measured, _ = simulate.verify(graph, design, reference.quantize(graph, [pixels[:6]]), Path(work) / "sim", 0)
        row["rtl"] = {"images": 6, **measured.to_json(), "estimate": {"lut": round(folding.lut), "dsp": folding.dsp, "bram18": folding.bram18, "fits": folding.fits}}  # fmt: skip
        print(row["rtl"], flush=True)
        rows.append(row)
        save("codenet_quantize", {**stamp(), "train": 4000, "test": TEST, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("example", "ladder", "block", "fabric", "folding", "quantize", "latency"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="quantize: first seed; rows of those before it are kept")
    parser.add_argument("--operators", default="")
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    {
        "example": example,
        "ladder": ladder,
        "block": block,
        "fabric": fabric,
        "folding": folding,
        "quantize": quantize,
        "latency": latency,
    }[args.what](args)


if __name__ == "__main__":
    main()
