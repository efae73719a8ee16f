"""Cases that a review found: each was wrong once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress import CompressConfig
from compress.graph import trace
from compress.quantize.place import points
from compress.quantize.plan import count_macs
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec


class Gamma(nn.Module):
    """A product with a stored tensor of mixed sign, and a difference written as add with alpha."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.gamma = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, -1.0]).reshape(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x)) * self.gamma
        z = F.relu(self.b(y))
        return self.c(torch.add(z, F.relu(self.a(x)), alpha=-1)).mean((2, 3))


def test_signs_through_stored_tensors_and_alpha() -> None:
    graph = trace(Gamma().eval())
    assert graph is not None
    static = {n for n in graph.graph.nodes if n.op == "call_module"}
    signs = {p.node.name: p.nonnegative for p in points(graph, static)}
    assert signs["mul"] is False and signs["add"] is False


class Opaque(nn.Module):
    """A block that stays one node of the graph (registered with timm as not traceable)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x)) + x if x.shape[0] > 0 else x


def test_convolutions_in_opaque_modules_below_8_bits() -> None:
    """The walk must not run their quantizers before they have a scale."""
    from timm.models._features_fx import register_notrace_module

    register_notrace_module(Opaque)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), Opaque(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    rng = np.random.default_rng(0)
    batches = [Batch((rng.standard_normal((32, 3, 8, 8), dtype=np.float32),)) for _ in range(3)]
    figures = {}
    for rounding in ("auto", "nearest"):
        config = CompressConfig(bits=6, rounding=rounding)
        record = compress.compress(net, config, inputs=(InputSpec("x", (1, 3, 8, 8)),), calibration=batches).record
        assert record["layers"]["2.conv"]["around"]
        figures[rounding] = record["accuracy"]["sqnr_db"]
    assert figures["auto"] > 15 and figures["auto"] > figures["nearest"] - 3, figures


def test_macs_count_rows_that_are_no_batch() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(-1, 4))

    assert count_macs(Windows().eval(), [torch.zeros(1, 64, 4)]) == {"linear": 1024}


def test_activation_override_behind_a_pool() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    batches = [Batch((np.random.default_rng(0).standard_normal((8, 3, 8, 8), dtype=np.float32),))]
    config = CompressConfig(bits=8, layer=("3=8/4",))
    recipe = compress.compress(net, config, inputs=(InputSpec("x", (1, 3, 8, 8)),), calibration=batches).recipe
    assert sorted(q["bits"] for q in recipe["plan"]["quantizers"].values()) == [4, 8, 8]


@pytest.mark.parametrize("kind", ["encoder", "gru", "sequence norm", "fuse"])
def test_models_that_crashed_once(kind: str) -> None:
    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.conv = nn.GRU(8, 8, batch_first=True), nn.Conv1d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.gru(x)[0].transpose(1, 2))

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 6), nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.linear(x))

    class Fuse(nn.Sequential):
        def fuse(self) -> None:
            """A user's own method of that name."""

    torch.manual_seed(0)
    nets = {
        "encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        "gru": Gru(),
        "sequence norm": Sequence(),
        "fuse": Fuse(nn.Linear(8, 4)),
    }
    batches = [Batch((np.random.default_rng(0).standard_normal((4, 5, 8), dtype=np.float32),))]
    result = compress.compress(
        nets[kind].eval(), CompressConfig(), inputs=(InputSpec("x", (1, 5, 8)),), calibration=batches
    )
    assert result.record["accuracy"]["sqnr_db"] > 20


def test_program_with_two_weights_in_one_module(tmp_path: Path) -> None:
    from deploy.program import load_program

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(F.relu(F.linear(x, self.w1)), self.w2)

    torch.manual_seed(0)
    net = nn.Sequential(Two()).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 8),)), tmp_path / "m.pt2")
    x = torch.randn(1, 8)
    assert torch.allclose(load_program(tmp_path / "m.pt2")[0](x), net(x), atol=1e-5)


def test_activations_none_keeps_linear_layers_in_float() -> None:
    from export.stage import convert

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    spec = (InputSpec("x", (1, 8)),)
    result = compress.compress(net, CompressConfig(activations="none"), inputs=spec)
    files, record = convert(result.float_module, result.module, spec)
    assert (
        "DynamicQuantizeLinear" not in record["operators"]
        and files["model.onnx"].ByteSize() < files["float.onnx"].ByteSize()
    )


def test_recipe_cannot_name_code_to_verify(tmp_path: Path) -> None:
    """`deploy verify` of a hostile folder: the factory in its recipe is not imported."""
    from tests.conftest import MODEL, deploy

    assert deploy("compress", MODEL, "--calib", "random", "--calib-samples", "8", "-o", str(tmp_path / "c")).code == 0
    recipe = json.loads((tmp_path / "c" / "recipe.json").read_text())
    recipe |= {"arch": "os:system", "arch_args": {"command": f"touch {tmp_path}/marker"}}
    (tmp_path / "c" / "recipe.json").write_text(json.dumps(recipe))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    from deploy.artifact import sha256_file

    manifest["files"]["recipe.json"]["sha256"] = sha256_file(tmp_path / "c" / "recipe.json")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    ran = deploy("verify", str(tmp_path / "c"))
    assert ran.code == 2 and "imports nothing" in ran.err and not (tmp_path / "marker").exists()


def test_program_expressions_are_not_evaluated(tmp_path: Path) -> None:
    """torch.export gives `expr_str` to sympy, which evals it."""
    import zipfile

    from deploy.program import load_program

    net = nn.Sequential(nn.Linear(8, 4)).eval()
    dynamic = ({0: torch.export.Dim("N")},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 8),), dynamic_shapes=dynamic), tmp_path / "good.pt2")
    assert load_program(tmp_path / "good.pt2")[1][0].shape[1:] == (8,)
    with zipfile.ZipFile(tmp_path / "good.pt2") as source, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".json") and b"expr_str" in data:
                text = json.loads(data)
                data = json.dumps(_poison(text, f"__import__('os').system('touch {tmp_path}/marker')")).encode()
            target.writestr(name, data)
    with pytest.raises(UserError, match="may carry code"):
        load_program(tmp_path / "bad.pt2")
    assert not (tmp_path / "marker").exists()


def _poison(value: object, text: str) -> object:
    if isinstance(value, dict):
        return {k: text if k == "expr_str" else _poison(v, text) for k, v in value.items()}
    return [_poison(v, text) for v in value] if isinstance(value, list) else value


def test_a_transformer_is_traced_and_static_ranges_are_taken_at_the_users_word() -> None:
    """Arguments with defaults (attn_mask, is_causal) must not keep a model from being traced."""
    import timm

    from tests.conftest import perturb

    torch.manual_seed(0)
    net = timm.create_model("deit_tiny_patch16_224", depth=2).eval()
    perturb(net)
    batches = [Batch((np.random.default_rng(0).standard_normal((4, 3, 224, 224), dtype=np.float32),))]
    spec = (InputSpec("x", (1, 3, 224, 224)),)
    for mode, quantizers in (("auto", 2), ("static", 18)):
        record = compress.compress(net, CompressConfig(activations=mode), inputs=spec, calibration=batches).record
        kinds = {r["activations"] for r in record["layers"].values() if r["kind"] == "Linear"}
        assert record["traced"] and kinds == {"dynamic" if mode == "auto" else "static"}
        assert record["activation_quantizers"] >= quantizers, record["activation_quantizers"]


def test_embeddings_are_quantized(tmp_path: Path) -> None:
    """A small BERT with integer inputs goes the whole way; its table stays integer in the file."""
    import onnx

    from bench.models import Bert
    from export.stage import convert

    torch.manual_seed(0)
    net = Bert(layers=1, width=32, heads=2, hidden=64, vocabulary=100).eval()
    spec = (InputSpec("input_ids", (1, 12), "int64", 100), InputSpec("attention_mask", (1, 12), "int64", 2))
    result = compress.compress(net, CompressConfig(), inputs=spec)
    assert result.record["layers"]["embeddings.word_embeddings"]["kind"] == "Embedding"
    files, record = convert(result.float_module, result.module, spec)
    kinds = {tuple(i.dims): i.data_type for i in files["model.onnx"].graph.initializer}
    assert kinds[(100, 32)] == onnx.TensorProto.INT8 and record["operators"]["MatMulInteger"] == 6


def test_timm_linear_is_quantized_and_what_is_not_is_said() -> None:
    """timm's own Linear class was once left in float without a word (MobileNetV3's classifier)."""
    from timm.layers.linear import Linear

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.weight = Linear(8, 6), nn.Parameter(torch.randn(4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.head(x), self.weight)

    torch.manual_seed(0)
    record = compress.compress(Functional().eval(), CompressConfig(), inputs=(InputSpec("x", (1, 8)),)).record
    assert list(record["layers"]) == ["head"]
    assert list(record["float_layers"].values()) == ["a functional call with its own weight"]
