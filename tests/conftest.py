"""What the tests share: the trained demonstration model, one full run of the command line on it, small checkpoints."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from deploy.cli import main

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
VIT = FASHION.parent / "vit" / "fashion_vit.safetensors"
MODEL, CALIB, TEST = (str(FASHION / n) for n in ("fashion_cnn.safetensors", "calib.npz", "test1000.npz"))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def deploy(*argv: str) -> Ran:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def fashion_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `deploy all` on the demonstration model at W4A8 with real calibration and labels."""
    root = tmp_path_factory.mktemp("fashion") / "out"
    ran = deploy(
        "all", MODEL, "--bits", "4", "--calib", CALIB, "--eval", TEST, "-o", str(root), "--samples", "100", "-q"
    )
    assert ran.code == 0, ran.err
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make (once) a checkpoint of a timm network with varied BatchNorm statistics and no zero-initialised tensors."""
    made: dict[str, Path] = {}

    def make(name: str, **args: object) -> Path:
        key = f"{name}{sorted(args.items())}"
        if key not in made:
            import timm

            torch.manual_seed(0)
            module = timm.create_model(name, pretrained=False, **args).eval()
            perturb(module)
            path = tmp_path_factory.mktemp("checkpoint") / f"{name}.pt"
            torch.save({"arch": name, "arch_args": args, "state_dict": module.state_dict()}, path)
            made[key] = path
        return made[key]

    return make


@torch.no_grad()
def perturb(module: torch.nn.Module) -> None:
    """Give every tensor values that make outputs vary: random weights with zero-initialised heads prove nothing."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.6, 1.6)
            if layer.weight is not None:
                layer.weight.uniform_(0.6, 1.4)
                layer.bias.normal_(0, 0.1)
    for parameter in module.parameters():
        if float(parameter.abs().max()) < 1e-3:
            parameter.normal_(0, 0.05)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """README's commands first: they take minutes one after the other, and would be what one worker does alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
