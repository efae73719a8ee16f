"""Fine-tuning: what is trained, that it helps, that it resumes to the same bits and is the same on two processes."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CALIB, MODEL, TEST, deploy
from safetensors.torch import load_file

from compress import recipe
from compress.config import CompressConfig
from compress.finetune.dataset import AUGMENT, Augmented, Order, Samples, shift, split
from compress.finetune.losses import distill
from compress.quantize import qat, scheme
from compress.quantize.plan import Plan
from deploy.checkpoint import flatten
from export import onnxfile
from hw.fpga.lower import lower

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--calib", CALIB, "--calib-samples", "64", "--finetune", "--batch", "32", "--held-out", "0.1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W2A4, trained on the 320 unlabelled calibration images."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    ran = deploy(
        "compress", MODEL, "--bits", "2", "--act-bits", "4", *SMALL, "--train", CALIB, "--epochs", "8", "--lr", "0.02", "--eval", TEST, "-o", str(out)
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "post-training" in ran.out and "fine-tuned" in ran.out
    return out


def test_it_helps_without_labels(tuned: Path) -> None:
    record = json.loads((tuned / "record.json").read_text())
    row = record["finetune"]
    assert not row["labels"] and row["samples"] == 288 and row["steps"] == 72 and row["metric"] == "agreement %"
    assert row["loss"][-1] < 0.9 * row["loss"][0]
    before, after = record["ptq_accuracy"], record["accuracy"]
    assert after["sqnr_db"] > before["sqnr_db"]
    assert after["compressed_percent"] >= before["compressed_percent"] - 0.5


def test_the_result_is_an_ordinary_compressed_model(tuned: Path, tmp_path: Path) -> None:
    """Weights on their grids, stored as integers of the planned bits, exported with all parity gates, verified."""
    module = recipe.load(tuned)
    quantized = [m for m in module.modules() if scheme.is_quantized(m)]
    assert sorted(scheme.bits_of(m) for m in quantized) == [2] * 5 + [8] * 2
    for layer in quantized:
        grid = scheme.integers(layer).float() * scheme.weight_scale(layer)
        assert torch.equal(layer.weight, grid)  # type: ignore[arg-type]
    ran = deploy("export", str(tuned), "-o", str(tmp_path / "e"), "-q")
    assert ran.code == 0, ran.err
    assert deploy("verify", str(tmp_path / "e")).code == 0
    lowered = lower(onnxfile.load(tmp_path / "e" / "model.qonnx.onnx", check=False))
    assert not lowered.problems and len(lowered.graph.nodes) == 17  # and the FPGA build takes it


def test_no_training_state_is_left(tuned: Path) -> None:
    assert [p.name for p in tuned.parent.iterdir()] == ["out"]


def _prepared() -> tuple[torch.nn.Module, torch.nn.Module, Plan, torch.Tensor]:
    from compress import api
    from deploy import checkpoint, data

    loaded = checkpoint.load(Path(MODEL), arch="", arch_args=(), input_shape="", trust_pickle=False)
    batches = data.load(CALIB, loaded.inputs, loaded.preprocess, limit=64)
    found: list[torch.nn.Module] = []
    original = api.quantize

    def keep(root: torch.nn.Module, *rest: object) -> torch.nn.Module:
        found.append(copy.deepcopy(root))
        return original(root, *rest)  # type: ignore[arg-type]

    api.quantize = keep  # type: ignore[assignment]
    try:
        done = api.compress(
            loaded.module, CompressConfig(bits=3, act_bits=4), inputs=loaded.inputs, calibration=batches
        )
    finally:
        api.quantize = original
    return done.module, found[0], Plan.from_json(done.recipe["plan"]), torch.from_numpy(batches[0].inputs[0])


def test_training_starts_at_the_post_training_result_and_trains_everything() -> None:
    module, floats, plan, x = _prepared()
    with torch.no_grad():
        before = module(x)
    trained = qat.start(module, floats, plan)
    after = module(x)
    assert torch.allclose(after, before, atol=1e-5 * float(before.abs().max()))
    parameters = dict(module.named_parameters())
    rows = [p for g in trained.groups(0.01, 0.001) for p in g["params"]]
    assert len(rows) == len({id(p) for p in rows}) == len(parameters) - 1
    inputs = [n for n in parameters if n.startswith("quantizers.x.")]
    assert len(inputs) == 1 and not parameters.pop(inputs[0]).requires_grad  # the input's scale describes the data
    assert len(trained.weights) == len(plan.layers)
    assert len(trained.scales) == len(plan.layers) + len(plan.quantizers) - 1
    gains = [n for n in parameters if n.endswith("gain")]
    assert len(gains) == 6  # the folded BatchNorms: these layers train as in Tune mode
    optimizer = torch.optim.Adam(trained.groups(0.05, 0.01))
    distill([after], [before + torch.randn_like(before)]).backward()
    still = [n for n, p in parameters.items() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not still, f"no gradient: {still}"
    old = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer.step()
    assert all(not torch.equal(old[n], p) for n, p in parameters.items())
    qat.finish(module, plan)
    assert not any("parametrizations" in n for n, _ in module.named_parameters())
    with torch.no_grad():
        assert not torch.equal(module(x), before)


def test_gradients_stop_where_activations_saturate() -> None:
    quantizer = scheme.Quantizer(scheme.ActivationSpec(4, False))
    quantizer.set_scale(0.1)
    x = torch.tensor([-1.0, 0.33, 1.2, 3.0], requires_grad=True)
    y = quantizer.train()(x)
    assert torch.allclose(y, torch.tensor([0.0, 0.3, 1.2, 1.5]), atol=1e-6)
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))  # type: ignore[arg-type]
    assert quantizer._scaling().value.grad is not None
    quantizer.eval()(torch.full((4,), 99.0))
    assert quantizer.scale == pytest.approx(0.1)  # frozen at eval


# ---------------------------------------------------------------- data


def test_every_process_sees_its_part_of_the_same_batch() -> None:
    samples = Samples((torch.arange(50.0).reshape(50, 1, 1, 1).repeat(1, 1, 8, 8),), torch.arange(50))
    order = Order(50, 8, seed=3)
    assert len(order) == 6 and len(list(order)) == 6
    first = list(order)
    flat = [i for batch in first for i in batch]
    assert sorted(flat) != flat and len(set(flat)) == 48
    order.start = 4
    assert list(order) == first[4:]  # resumed
    order.epoch, order.start = 1, 0
    assert list(order) != first
    order.epoch = 0
    data = Augmented(samples, AUGMENT["flip+shift"], 5, order)
    whole = data.__getitems__(first[0])
    halves = [data.__getitems__(first[0][k : k + 4]) for k in (0, 4)]
    assert torch.equal(whole[0], torch.cat([h[0] for h in halves]))
    assert torch.equal(whole[1], torch.tensor(first[0]))


def test_shift_moves_and_pads() -> None:
    x = torch.rand(1, 2, 25, 25) + 1
    low = float(x.min())
    moved = shift(x, torch.tensor([[0.0, 0.999, 0.0, 0.0]]))  # 2 rows down the padded image, no column
    assert torch.equal(moved[..., :-2, 2:], x[..., 2:, :-2])
    assert (moved[..., -2:, :] == low).all() and (moved[..., :2] == low).all()
    centre = shift(x, torch.tensor([[0.0, 0.5, 0.5, 0.0]]))
    assert torch.allclose(centre, x)


def test_held_out_samples_are_not_trained_on() -> None:
    samples = Samples((torch.arange(100.0)[:, None],), None)
    train, held = split(samples, 0.1, 0)
    assert len(held) == 10 and len(train) == 90
    assert not set(train.inputs[0].flatten().tolist()) & set(held.inputs[0].flatten().tolist())


def test_distillation_is_zero_at_the_teacher_and_counts_every_output() -> None:
    a, b = torch.randn(4, 5), torch.randn(4, 2, 3, 3)
    assert float(distill([a, b], [a, b])) == pytest.approx(0, abs=1e-6)
    assert float(distill([a, b + 1], [a, b])) > 0.3 < float(distill([a * 3, b], [a, b]))


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--finetune",), 2, "--finetune needs samples to train on"),
        (("--train", CALIB), 2, "--train is for --finetune"),
        (("--finetune", "--train", CALIB, "--label-weight", "0.5"), 2, "--label-weight needs labels"),
        (("--finetune", "--train", CALIB, "--batch", "400"), 2, "fewer than --batch 400"),
        (("--finetune", "--train", CALIB, "--metric", "numpy:mean"), 2, "--metric compares with labels"),
        (("--finetune", "--train", "/nowhere.npz"), 2, "does not exist"),
        (("--finetune", "--train", "shifted.npz", "--label-weight", "0.5"), 2, "0 to 9; --train has 1 to 10"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, flags: tuple[str, ...], code: int, text: str) -> None:
    test = np.load(TEST)
    np.savez(tmp_path / "shifted.npz", x=test["x"][:200], y=test["y"][:200] + 1)
    flags = tuple(f.replace("shifted.npz", str(tmp_path / "shifted.npz")) for f in flags)
    ran = deploy("compress", MODEL, "--calib", CALIB, "--calib-samples", "32", "-o", str(tmp_path / "o"), *flags)
    assert ran.code == code, ran.err
    assert text in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "o").exists()


def test_without_accelerate_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    ran = deploy("compress", MODEL, *SMALL, "--train", CALIB, "-o", str(tmp_path / "o"))
    assert ran.code == 2 and "deploy-toolchain[finetune]" in ran.err


def test_a_loss_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loss.py").write_text(
        "from pathlib import Path\n"
        "def loss(student, teacher, labels):\n"
        "    return (student[0] - teacher[0]).abs().mean()\n"
        "def metric(outputs, labels):\n"
        "    return -float(abs(outputs.argmax(1) - labels).mean())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "o"
    ran = deploy(
        "compress", MODEL, "--bits", "4", *SMALL, "--train", TEST, "--train-samples", "200", "--epochs", "1",
        "--loss", "own_loss:loss", "--metric", "own_loss:metric", "-o", str(out),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    row = json.loads((out / "record.json").read_text())["finetune"]
    assert row["metric"] == "own_loss:metric" and row["metric_float"] <= 0 and row["labels"]


def test_a_loss_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_loss.py").write_text(
        "def loss(student, teacher, labels):\n    return student[0].sum() * float('inf')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = deploy("compress", MODEL, *SMALL, "--train", CALIB, "--loss", "bad_loss:loss", "-o", str(tmp_path / "o"))
    assert ran.code == 4 and "training diverged in epoch 1" in ran.err and "lower --lr" in ran.err
    assert not (tmp_path / "o").exists()


def test_it_stops_at_the_bound(tmp_path: Path) -> None:
    out = tmp_path / "o"
    ran = deploy("compress", MODEL, *SMALL, "--train", CALIB, "--epochs", "9", "--stop-drop", "50", "-o", str(out))
    assert ran.code == 0, ran.err
    row = json.loads((out / "record.json").read_text())["finetune"]
    assert row["stopped_early"] and row["epochs"] == 1 and "stopped early" in ran.out


# ---------------------------------------------------------------- processes


def _command(out: Path, *more: str) -> list[str]:
    return ["compress", MODEL, "--bits", "4", *SMALL, "--train", CALIB, "--epochs", "2", "-o", str(out), "--save-every", "3", *more]  # fmt: skip


def _environment(threads: int = 1) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    python = [sys.executable, "-m", "deploy"]
    done = subprocess.run(
        [*python, *_command(tmp_path / "whole")], env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    running = subprocess.Popen(
        [*python, *_command(tmp_path / "cut")], env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = tmp_path / ".cut.training"
    until = time.monotonic() + 120
    while not (state.is_dir() and any(p.name.startswith("step-00000-0000006") for p in state.iterdir())):
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "cut").exists()
    other = deploy(*_command(tmp_path / "cut", "--lr", "0.02"))
    assert other.code == 2 and "training state of other settings" in other.err
    newest = max(state.glob("step-*"))
    assert not list(newest.glob("custom*"))  # nothing of ours is a pickle
    (newest / "position.json").rename(newest / "kept")
    damaged = deploy(*_command(tmp_path / "cut"))
    assert damaged.code == 2 and "is damaged; remove it" in damaged.err
    (newest / "kept").rename(newest / "position.json")
    again = subprocess.run(
        [*python, *_command(tmp_path / "cut")], env=_environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "cut"))
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    losses = [json.loads((tmp_path / n / "record.json").read_text())["finetune"]["losses"] for n in ("whole", "cut")]
    assert losses[0] == losses[1] and len(losses[0]) == 18
    assert not state.exists()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """accelerate launch, gloo. With the same micro-batches the sums are the same, and so is every bit; with one whole batch
    they are rounded in another order, which quantizers amplify: the loss curve stays within 1e-4."""
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", "0", "-m", "deploy",
    ]  # fmt: skip
    alone = [sys.executable, "-m", "deploy"]
    rows = {}
    for name, how, more in (("two", launch, "0"), ("halves", alone, "16"), ("whole", alone, "0")):
        done = subprocess.run(
            [*how, *_command(tmp_path / name, "--micro-batch", more)], env=_environment(), capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("wrote") == 1  # the second process is silent
        rows[name] = json.loads((tmp_path / name / "record.json").read_text())["finetune"]
    assert rows["two"]["processes"] == 2
    curves = {n: np.array(r["losses"]) for n, r in rows.items()}
    assert len(curves["two"]) == 18 and curves["two"].std() > 0
    assert np.abs(curves["two"] / curves["halves"] - 1).max() < 1e-4
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("two", "halves"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert curves["two"][0] == curves["whole"][0] and np.abs(curves["two"] - curves["whole"]).max() < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["halves", "two", "whole"]


def test_a_batch_that_processes_cannot_share() -> None:
    from compress.finetune.loop import Options, train
    from deploy.errors import UserError

    class Hub:
        num_processes = 3

    samples = Samples((torch.rand(40, 3),), None)
    order = Order(40, 32, 0)
    options = Options(1, 32, 0, 0.01, 0.001, 0, None, None, "", 0)
    net = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        train(
            net, net, qat.Trained([], [], []), Augmented(samples, (), 0, order), order, lambda a, b, c: a[0].sum(),
            lambda m: 0.0, options, Hub(),
        )  # fmt: skip
    assert flatten(net(samples.inputs[0]))[0].shape == (40, 2)


def test_dynamic_ranges_pass_gradients() -> None:
    """The layers before a dynamically quantized one learn: values as without gradients, bit for bit, and the gradient of the identity."""
    from compress.quantize.scheme import DynamicActivation

    layer = DynamicActivation()
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = layer(x)
    trained = x.clone().requires_grad_(True)
    got = layer(trained)
    assert torch.equal(got, want)
    weight = torch.randn(64, 16)
    (got * weight).sum().backward()
    assert trained.grad is not None
    inside = (want > want.min()) & (want < want.max())
    assert torch.allclose(trained.grad[inside], weight[inside], rtol=1e-5)
