"""The networks of the runtime measurements, as float ONNX files with random, perturbed weights (speed does not depend on them).

python -m bench.runtime_networks FOLDER [NAME ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

from bench.models import Bert
from compress.codenet.network import CoDeNet, codenet
from deploy.inputs import InputSpec
from export.torch2onnx import export_float

NAMED = {
    "resnet18": "resnet18", "resnet50": "resnet50", "mobilenetv2": "mobilenetv2_100", "efficientnet_lite0": "efficientnet_lite0",
    "convnext_atto": "convnext_atto", "deit_tiny": "deit_tiny_patch16_224",
}  # fmt: skip
# random.Random(2026).shuffle(sorted(timm.list_models())), the first ten of at most 30 M parameters and 256 pixels (timm 1.0.31)
LOT = (
    "mobilenetv3_rw", "pit_s_224", "test_efficientnet_evos", "lowformer_b0", "darknet17", "vit_srelpos_small_patch16_224",
    "convnextv2_atto", "seresnext26ts", "efficientnet_blur_b0", "convnext_pico",
)  # fmt: skip
WEAK = (
    "regnety_004",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
)  # grouped convolutions, gates, channel shuffles: the prototype's weak spots


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random normalisation statistics and scales, so that no output is constant and no branch is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            for name, value in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]:
                if not value.is_floating_point() or value.ndim > 1:
                    continue
                noise = torch.rand(value.shape, generator=generator)
                if "var" in name or name in ("weight", "gamma"):
                    value.copy_(0.5 + noise)
                else:
                    value.copy_(0.2 * (noise - 0.5))
    return module.eval()


def _timm(name: str) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    model = timm.create_model(name, pretrained=False)
    return model, (InputSpec("input", (1, *model.default_cfg["input_size"]), "float32"),)


def _shufflenet() -> tuple[nn.Module, tuple[InputSpec, ...]]:
    from torchvision.models import shufflenet_v2_x1_0

    return shufflenet_v2_x1_0(), (InputSpec("input", (1, 3, 224, 224), "float32"),)


def _detector() -> tuple[nn.Module, tuple[InputSpec, ...]]:
    net: CoDeNet = codenet("a", operator="conv3", resolution=256)
    return net, (InputSpec("input", (1, 3, 256, 256), "float32"),)


BUILD: dict[str, Callable[[], tuple[nn.Module, tuple[InputSpec, ...]]]] = {
    **{short: (lambda full=full: _timm(full)) for short, full in NAMED.items()},
    "minilm": lambda: (Bert(), Bert.inputs),
    "detector": _detector,
    **{name: (lambda name=name: _timm(name)) for name in LOT + WEAK},
    "shufflenet_v2_x1_0": _shufflenet,
}


def write(name: str, folder: Path) -> Path:
    """FOLDER/NAME.onnx, made if missing."""
    path = folder / f"{name}.onnx"
    if not path.is_file():
        torch.manual_seed(0)
        module, specs = BUILD[name]()
        model, _ = export_float(perturb(module), specs)
        path.write_bytes(model.SerializeToString())
    return path


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for item in sys.argv[2:] or BUILD:
        print(write(item, place), flush=True)
