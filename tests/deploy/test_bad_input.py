"""Everything a user or an attacker can hand in wrong: the exit code, one sentence, nothing half-written, nothing run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from torch import nn

from compress.models.fashion import fashion_cnn
from tests.conftest import CALIB, MODEL, VIT, deploy


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.marker, "w")


def _state() -> dict[str, torch.Tensor]:
    return load_file(MODEL)


def _save(path: Path, value: object) -> str:
    torch.save(value, path)
    return str(path)


def _npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _tensors(path: Path, state: dict[str, torch.Tensor], **meta: str) -> str:
    save_file(state, path, meta)
    return str(path)


def _onnx(
    path: Path, change: Callable[[onnx.ModelProto], None] = lambda m: None, dims: tuple[object, ...] = (1, 4)
) -> str:
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [dims[0], 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    change(model)
    path.write_bytes(model.SerializeToString())
    return str(path)


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def _pt2(path: Path, extra: dict[str, bytes]) -> str:
    program = torch.export.export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as source:
        root = source.namelist()[0].partition("/")[0]
        members = {n: source.read(n) for n in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in {**members, **{f"{root}/{k}": v for k, v in extra.items()}}.items():
            target.writestr(name, data)
    return str(path)


def _cut(source: str, path: Path, share: float) -> str:
    data = Path(source).read_bytes()
    return _write(path, data[: int(len(data) * share)])


def _poisoned() -> dict[str, torch.Tensor]:
    state = _state()
    state["head.weight"][0, 0] = float("nan")
    return state


def _renamed() -> dict[str, torch.Tensor]:
    return {k.replace("features", "body"): v for k, v in _state().items()}


def _recipe_folder(path: Path, text: str) -> str:
    path.mkdir()
    (path / "recipe.json").write_text(text)
    return str(path)


def _image_folder(path: Path, data: bytes | None) -> str:
    path.mkdir()
    (path / ("a.png" if data else "readme.txt")).write_bytes(data or b"no picture")
    return str(path)


ARCH = {"arch": "deploy:fashion_cnn"}
Case = tuple[str, Callable[[Path], list[str]], str]
CASES: list[Case] = [
    ("model missing", lambda t: ["compress", str(t / "no.pt")], "does not exist"),
    ("no model at all", lambda t: ["compress"], "MODEL is missing"),
    ("empty file", lambda t: ["compress", _write(t / "m.pt", b"")], "is empty"),
    ("random bytes", lambda t: ["compress", _write(t / "m.pt", bytes(range(256)) * 9)], "neither safetensors"),
    ("text file", lambda t: ["compress", _write(t / "m.pt", b"hello world, no model")], "neither safetensors"),
    ("truncated checkpoint", lambda t: ["compress", _cut(_save(t / "a.pt", {**ARCH, "state_dict": _state()}), t / "m.pt", 0.6)], "truncated"),
    ("truncated safetensors", lambda t: ["compress", _cut(MODEL, t / "m.safetensors", 0.5)], "no valid safetensors"),
    ("safetensors header lies", lambda t: ["compress", _write(t / "m.safetensors", b"\xff" * 8 + b"{}")], "no valid safetensors"),
    ("pickle bomb in a checkpoint", lambda t: ["compress", _save(t / "m.pt", {**ARCH, "x": Bomb(t / "marker")})], "would run code"),
    ("legacy pickle bomb", lambda t: ["compress", _write(t / "m.pt", pickle.dumps(Bomb(t / "marker")))], "would run code"),
    ("pickled module", lambda t: ["compress", _save(t / "m.pt", fashion_cnn())], "--trust-pickle"),
    ("trusted module without a factory", lambda t: ["compress", _save(t / "m.pt", fashion_cnn()), "--trust-pickle"], "--arch"),
    ("TorchScript", lambda t: ["compress", (torch.jit.script(nn.ReLU()).save(str(t / "m.pt")), str(t / "m.pt"))[1]], "TorchScript"),
    ("no architecture named", lambda t: ["compress", _save(t / "m.pt", _state())], "names no architecture"),
    ("unknown architecture", lambda t: ["compress", _save(t / "m.pt", {"arch": "resnet19", "state_dict": _state()})], "unknown"),
    ("file names a factory", lambda t: ["compress", _save(t / "m.pt", {"arch": "os:system", "state_dict": _state()})], "imports nothing"),
    ("file arch is a path", lambda t: ["compress", _save(t / "m.pt", {"arch": "a b;c", "state_dict": _state()})], "not a valid name"),
    ("file arch is no string", lambda t: ["compress", _save(t / "m.pt", {"arch": 7, "state_dict": _state()})], "not a name"),
    ("factory not importable", lambda t: ["compress", MODEL, "--arch", "no_such_module:f"], "cannot import"),
    ("factory has no such name", lambda t: ["compress", MODEL, "--arch", "json:nothing"], "has no"),
    ("factory returns no module", lambda t: ["compress", MODEL, "--arch", "builtins:dict"], "not a torch.nn.Module"),
    ("arch-arg malformed", lambda t: ["compress", MODEL, "--arch-arg", "width"], "name=value"),
    ("arch-arg refused", lambda t: ["compress", MODEL, "--arch-arg", "wheels=4"], "refused the arguments"),
    ("wrong keys", lambda t: ["compress", _tensors(t / "m.safetensors", _renamed(), **ARCH)], "do not fit"),
    ("wrong shapes", lambda t: ["compress", MODEL, "--arch-arg", "width=16"], "has shape"),
    ("NaN weights", lambda t: ["compress", _tensors(t / "m.safetensors", _poisoned(), **ARCH)], "NaN or infinity"),
    ("no tensors", lambda t: ["compress", _save(t / "m.pt", {**ARCH, "state_dict": {"a": 1}})], "no tensors"),
    ("a list, not a dict", lambda t: ["compress", _save(t / "m.pt", [1, 2])], "holds a list"),
    ("integer weights", lambda t: ["compress", _save(t / "m.pt", {**ARCH, "state_dict": {k: v.to(torch.int8) for k, v in _state().items()}})], "dequantize"),
    ("arch_args are not JSON", lambda t: ["compress", _tensors(t / "m.safetensors", _state(), **ARCH, arch_args="{")], "not JSON"),
    ("program with a pickle", lambda t: ["compress", _pt2(t / "m.pt2", {"data/constants/custom_obj_0": pickle.dumps(Bomb(t / "marker"))})], "may carry code"),
    ("program with legacy weights", lambda t: ["compress", _pt2(t / "m.pt2", {"data/weights/model.pt": pickle.dumps(Bomb(t / "marker"))})], "may carry code"),
    ("truncated program", lambda t: ["compress", _cut(_pt2(t / "a.pt2", {}), t / "m.pt2", 0.7)], "truncated"),
    ("ONNX given to compress", lambda t: ["compress", _onnx(t / "m.onnx")], "give a checkpoint"),
    ("nine bits", lambda t: ["compress", MODEL, "--bits", "9"], "--bits takes"),
    ("float bits fine-tuned", lambda t: ["compress", MODEL, "--bits", "32", "--finetune", "--train", CALIB], "quantizes nothing"),
    ("pruning without a target", lambda t: ["compress", MODEL, "--prune", "optin"], "wants a target"),
    ("target without pruning", lambda t: ["compress", MODEL, "--macs", "0.5"], "belong to --prune"),
    ("two targets", lambda t: ["compress", MODEL, "--prune", "channels", "--macs", "0.5", "--params", "0.5", "--calib", CALIB], "are two targets"),
    ("parameters for a one-shot method", lambda t: ["compress", MODEL, "--prune", "optin", "--params", "0.5"], "give --macs"),
    ("VTrans without data", lambda t: ["compress", str(VIT), "--prune", "vtrans", "--macs", "0.5", "--calib", CALIB], "give --train DATA"),
    ("unknown method", lambda t: ["compress", MODEL, "--prune", "optim", "--macs", "0.5"], "did you mean 'optin'"),
    ("share above one", lambda t: ["compress", MODEL, "--prune", "optin", "--macs", "60"], "--macs takes"),
    ("pruning without samples", lambda t: ["compress", str(VIT), "--prune", "optin", "--macs", "0.5"], "give --calib DATA"),
    ("a CNN with a transformer's method", lambda t: ["compress", MODEL, "--prune", "optin", "--macs", "0.5", "--calib", CALIB], "--prune channels"),
    ("target out of reach", lambda t: ["compress", str(VIT), "--prune", "optin", "--macs", "0.001", "--calib", CALIB], "cannot be met"),
    ("vocabulary of a ViT", lambda t: ["compress", str(VIT), "--prune", "magnitude", "--macs", "0.7", "--no-controls", "--prune-vocabulary", "--calib", CALIB], "encoders of text"),
    ("no class of transformers", lambda t: ["compress", _save(t / "m.pt", {"arch": "transformers:Trainer", "state_dict": _state()})], "no model class"),
    ("bits in words", lambda t: ["compress", MODEL, "--bits", "four"], "whole number"),
    ("activation bits too few", lambda t: ["compress", MODEL, "--act-bits", "3"], "--act-bits takes"),
    ("unknown rounding", lambda t: ["compress", MODEL, "--rounding", "gptk"], "did you mean 'gptq'"),
    ("layer override malformed", lambda t: ["compress", MODEL, "--layer", "head"], "PATTERN=BITS"),
    ("layer override matches nothing", lambda t: ["compress", MODEL, "--calib", "random", "--layer", "tail=8"], "matches no layer"),
    ("unknown flag", lambda t: ["compress", MODEL, "--bit", "4"], "unrecognized arguments"),
    ("unknown verb", lambda t: ["compres", MODEL], "did you mean 'compress'"),
    ("input shape malformed", lambda t: ["compress", MODEL, "--input-shape", "1xCx28"], "not of the form"),
    ("input shape huge", lambda t: ["compress", MODEL, "--input-shape", "1x1x99999999x99999999"], "more than"),
    ("input shape wrong", lambda t: ["compress", MODEL, "--input-shape", "1x3x28x28"], "does not take an input"),
    ("calibration missing", lambda t: ["compress", MODEL, "--calib", str(t / "no.npz")], "does not exist"),
    ("calibration damaged", lambda t: ["compress", MODEL, "--calib", _cut(CALIB, t / "c.npz", 0.5)], "cannot be read"),
    ("calibration is text", lambda t: ["compress", MODEL, "--calib", _write(t / "c.txt", b"1 2 3")], "is not an image folder"),
    ("calibration mis-shaped", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", x=np.zeros((4, 1, 14, 14), np.float32))], "samples of shape"),
    ("calibration with NaN", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", x=np.full((4, 1, 28, 28), np.nan, np.float32))], "NaN"),
    ("calibration empty", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", x=np.zeros((0, 1, 28, 28), np.float32))], "no samples"),
    ("calibration of objects", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", x=np.array([Bomb(t / "marker")], object))], "cannot be read"),
    ("calibration of text", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", x=np.array(["a", "b"]))], "must be numbers"),
    ("calibration names unclear", lambda t: ["compress", MODEL, "--calib", _npz(t / "c.npz", a=np.zeros(3), b=np.zeros(3))], "name the samples 'x'"),
    ("folder without images", lambda t: ["compress", MODEL, "--calib", _image_folder(t / "images", None)], "holds no images"),
    ("folder with a broken image", lambda t: ["compress", MODEL, "--calib", _image_folder(t / "images", b"\x89PNG broken")], "cannot be read"),
    ("calibration function missing", lambda t: ["compress", MODEL, "--calib", "no_module_here:f"], "cannot import"),
    ("evaluation without labels", lambda t: ["compress", MODEL, "--calib", "random", "--eval", CALIB], "no labels"),
    ("output is a file", lambda t: ["compress", MODEL, "-o", _write(t / "taken", b"x")], "not a folder"),
    ("output holds other files", lambda t: ["compress", MODEL, "-o", _image_folder(t / "mine", None)], "did not write"),
    ("output cannot be written", lambda t: ["compress", MODEL, "--calib", "random", "-o", "/proc/deploy/out"], "another"),
    ("config missing", lambda t: ["compress", MODEL, "-c", str(t / "no.yaml")], "does not exist"),
    ("config with an unknown key", lambda t: ["compress", MODEL, "-c", _write(t / "c.yaml", b"bit: 4\n")], "did you mean 'bits'"),
    ("config is a list", lambda t: ["compress", MODEL, "-c", _write(t / "c.yaml", b"- 1\n")], "must be a mapping"),
    ("config is no YAML", lambda t: ["compress", MODEL, "-c", _write(t / "c.yaml", b"a: [1\n")], "not valid YAML"),
    ("config runs code", lambda t: ["compress", MODEL, "-c", _write(t / "c.yaml", f"bits: !!python/object/apply:builtins.open ['{t}/marker', w]\n".encode())], "not valid YAML"),
    ("config with a wrong type", lambda t: ["compress", MODEL, "-c", _write(t / "c.yaml", b"fold: 3\n")], "--fold takes"),
    ("export of a plain folder", lambda t: ["export", _image_folder(t / "plain", None)], "no compressed model"),
    ("export of a damaged recipe", lambda t: ["export", _recipe_folder(t / "c", "{")], "missing or damaged"),
    ("export of another format", lambda t: ["export", _recipe_folder(t / "c", json.dumps({"format": 99}))], "format"),
    ("profile of a checkpoint", lambda t: ["profile", MODEL], "neither an export folder"),
    ("profile of a damaged ONNX", lambda t: ["profile", _write(t / "m.onnx", b"\x08\x07garbage" * 50)], "ONNX"),
    ("profile of a truncated ONNX", lambda t: ["profile", _cut(_onnx(t / "a.onnx"), t / "m.onnx", 0.4)], "ONNX"),
    ("ONNX with data elsewhere", lambda t: ["profile", _onnx(t / "m.onnx", _external)], "another file"),
    ("ONNX with huge shapes", lambda t: ["profile", _onnx(t / "m.onnx", _huge)], "the limit is"),
    ("ONNX with an unknown operator", lambda t: ["profile", _onnx(t / "m.onnx", lambda m: setattr(m.graph.node[0], "op_type", "Nope"))], "not valid ONNX"),
    ("ONNX with open dimensions", lambda t: ["profile", _onnx(t / "m.onnx", dims=("N", "K"))], "open dimensions"),
    ("too few samples", lambda t: ["profile", _onnx(t / "m.onnx"), "--samples", "20"], "too few"),
    ("verify of nothing", lambda t: ["verify", _image_folder(t / "plain", None)], "no output of deploy"),
    ("report of nothing", lambda t: ["report", _image_folder(t / "plain", None)], "no output of deploy"),
    ("unknown board", lambda t: ["boards", "pynq-z3"], "did you mean"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input(argv: Callable[[Path], list[str]], words: str, tmp_path: Path) -> None:
    command = argv(tmp_path)
    before = set(tmp_path.rglob("*"))
    stage = command[0] in ("compress", "export", "profile", "report")
    if stage and "-o" not in command:
        command += ["-o", str(tmp_path / "out")]
    ran = deploy(*command)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("deploy: ") and words in last, ran.err
    assert set(tmp_path.rglob("*")) == before, "something was written"
    assert not (tmp_path / "marker").exists(), "code in the file was run"


def test_hostile_annotation_is_removed(tmp_path: Path) -> None:
    """qonnx and FINN eval() these strings; ours must be gone before any of that code sees the file."""
    marker = tmp_path / "marker"

    def poison(model: onnx.ModelProto) -> None:
        annotation = model.graph.quantization_annotation.add(tensor_name="x")
        annotation.quant_parameter_tensor_names.add(key="tensor_layout", value=f"open('{marker}', 'w')")
        annotation.quant_parameter_tensor_names.add(key="finn_datatype", value="INT8")

    from export.onnxfile import load

    model = load(Path(_onnx(tmp_path / "m.onnx", poison)))
    assert [r.key for r in model.graph.quantization_annotation[0].quant_parameter_tensor_names] == ["finn_datatype"]
    assert not marker.exists()
