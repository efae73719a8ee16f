"""transformers models in: by class name and config alone, from files as the hub has them, nothing foreign imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.arch import is_known, resolve
from deploy.checkpoint import load
from deploy.errors import UserError
from deploy.hub import build, place_keys, read_config

BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def folder(path: Path, name: str, **config: object) -> Path:
    """A model folder as transformers' save_pretrained writes it, with noisy weights."""
    import transformers

    cls = getattr(transformers, name)
    model = cls(cls.config_class(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path / "model.safetensors"


def test_a_saved_encoder_with_its_pooling(tmp_path: Path) -> None:
    import transformers

    file = folder(tmp_path, "BertModel", **BERT)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    loaded = load(file)
    assert loaded.arch == "transformers:BertModel" and [s.shape for s in loaded.inputs] == [(1, 12), (1, 12)]
    ids, mask = torch.randint(0, 60, (3, 12)), torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    original = transformers.BertModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        hidden = original(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, mask, strict=True)])
        assert torch.allclose(loaded.module(ids, mask), torch.nn.functional.normalize(mean, dim=-1), atol=1e-6)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_files_of_models_with_heads(name: str, tmp_path: Path) -> None:
    import transformers

    config = (
        {
            "vocab_size": 60,
            "n_positions": 20,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        if name.startswith("GPT")
        else BERT
    )
    file = folder(tmp_path, name, **config)
    loaded = load(file, arch_args=("tokens=10",))
    original = getattr(transformers, name).from_pretrained(tmp_path).eval()
    ids, mask = torch.randint(0, 60, (2, 10)), torch.ones(2, 10, dtype=torch.int64)
    with torch.no_grad():
        want = original(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(loaded.module(ids, mask), want, atol=1e-5) and float(want.std()) > 1e-3


def test_a_base_model_out_of_a_file_with_a_head(tmp_path: Path) -> None:
    """`bert.` in front of every key and a head that the base model lacks."""
    file = folder(tmp_path, "BertForMaskedLM", **BERT)
    state = {k: v for k, v in _state(file).items() if k.startswith("bert.")}
    built = build("BertModel")(**BERT, tokens=8)
    placed = place_keys(state, built)
    assert set(placed) <= set(built.state_dict()) and len(placed) > 30


def _state(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_only_model_classes_of_transformers() -> None:
    for name in ("AutoModel", "pipeline", "BertConfig", "os", "Trainer"):
        with pytest.raises(UserError, match="no model class"):
            build(name)
    assert is_known("transformers:BertModel") and not is_known("evil.mod:factory")
    with pytest.raises(UserError, match="not a valid name"):
        resolve("transformers:Bert;Model", from_user=False)


def test_a_config_cannot_bring_code(tmp_path: Path) -> None:
    file = folder(tmp_path, "BertModel", **BERT)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModel": "evil--evil.Evil"},
        "attn_implementation": "kernels-community/evil",
        "quantization_config": {"quant_method": "evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = load(file).module
    assert type(module.model).__module__ == "transformers.models.bert.modeling_bert"  # type: ignore[union-attr]
    assert module.model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["{", "[]", '{"architectures": [3]}', '{"architectures": ["a-b"]}', "{}"])
def test_other_configs_name_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path / "model.safetensors") is None


def test_wrong_sizes_are_the_users_fault(tmp_path: Path) -> None:
    save_file({"embeddings.word_embeddings.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert", **BERT}))
    with pytest.raises(UserError, match="do not fit the architecture"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu_x"}, {"num_attention_heads": 0}, {"hidden_size": None}, {"id2label": 3}]
)
def test_values_that_make_no_model(change: dict[str, object], tmp_path: Path) -> None:
    save_file({"embeddings.word_embeddings.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["BertModel"], "model_type": "bert", **BERT, **change})
    )
    with pytest.raises(UserError):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["DPTForDepthEstimation", "UperNetForSemanticSegmentation", "TimmWrapperModel", "TimmBackbone"]
)
def test_classes_that_fetch_parts_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no model class"):
        build(name)
