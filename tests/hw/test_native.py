"""Standalone folders: proven under qemu for both board processors, measured over ssh on a server of this computer."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy.errors import ToolError
from deploy.inputs import InputSpec, examples
from export import onnxfile
from export.parity import session
from hw.native.folder import Folder
from hw.native.plan import Plan, Tensor, _place
from hw.native.processors import of_board
from tests.conftest import deploy

SPEC = InputSpec("input", (1, 1, 28, 28))


@pytest.fixture(scope="module")
def native(fashion_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("native") / "host"
    ran = deploy("native", str(fashion_run / "export"), "-o", str(place))
    assert ran.code == 0, ran.err
    return place


@pytest.mark.parametrize("board,tool", [("ultra96-v2", "qemu-aarch64-static"), ("pynq-z1", "qemu-arm-static")])
@pytest.mark.parametrize("file", ["model.onnx", "float.onnx"])
def test_boards_compute_what_this_computer_computes(
    board: str, tool: str, file: str, fashion_run: Path, tmp_path: Path
) -> None:
    """Integers bit for bit, floats to 1e-5; the outputs are those of ONNX Runtime."""
    if shutil.which(tool) is None or shutil.which(of_board(board).compiler.name) is None:
        pytest.skip(f"{tool} or the cross compiler is not installed")
    place = tmp_path / "n"
    ran = deploy("native", str(fashion_run / "export" / file), "--board", board, "-o", str(place))
    assert ran.code == 0, ran.err
    record = json.loads((place / "native.json").read_text())
    assert record["equal"] if file == "model.onnx" else record["difference"] < 1e-5
    values = examples((SPEC,), 5)
    got = Folder(place).execute(of_board(board), values, tmp_path)[0][0]
    want = session(onnxfile.load(fashion_run / "export" / file)).run(None, {"input": values[0]})[0]
    assert np.abs(got - want).max() <= (2e-2 if file == "model.onnx" else 1e-5) * np.abs(want).max()
    assert deploy("verify", str(place)).code == 0


def two_outputs() -> onnx.ModelProto:
    """Floats and booleans in and out; the second output is what the first is not."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Where", ["mask", "square", "x"], ["y"]),
        helper.make_node("Less", ["y", "x"], ["below"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 20)), helper.make_tensor_value_info("mask", TensorProto.BOOL, (3, 20))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 20)), helper.make_tensor_value_info("below", TensorProto.BOOL, (3, 20))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_every_output_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Booleans run; a folder whose second output is wrong, or no number, is no folder. Relative paths."""
    monkeypatch.chdir(tmp_path)
    onnx.save(two_outputs(), "two.onnx")
    assert deploy("native", "two.onnx", "-o", "two").code == 0
    assert json.loads(Path("two/native.json").read_text())["equal"] and deploy("verify", "two").code == 0
    right = Folder.execute
    for wrong in (12345.0, np.nan):

        def damaged(self: Folder, *a: Any, **k: Any) -> Any:
            outputs, record = right(self, *a, **k)
            return [outputs[0] * 1, *(np.full(o.shape, wrong, np.float32) for o in outputs[1:])], record  # noqa: B023

        monkeypatch.setattr(Folder, "execute", damaged)
        ran = deploy("native", "two.onnx", "--seed", "1", "-o", "bad")
        assert ran.code == 4 and "differs" in ran.err and not Path("bad").exists()


def test_threads_change_nothing(native: Path, tmp_path: Path) -> None:
    values = examples((SPEC,), 1)
    folder, processor = Folder(native), of_board("host-cpu")
    one = folder.execute(processor, values, tmp_path)[0][0]
    two, record = folder.execute(processor, values, tmp_path, threads=3, samples=5)
    assert np.array_equal(one, two[0]) and len(record["wall_ms"]) == 5 and record["peak_memory_mb"] > 0


def test_a_damaged_folder_is_refused(native: Path, tmp_path: Path) -> None:
    """A plan that reaches out of its files, short weights, a folder of something else."""
    values, processor = examples((SPEC,), 1), of_board("host-cpu")
    broken = tmp_path / "b"
    shutil.copytree(native, broken)
    plan = (broken / "plan.txt").read_text()
    lines = plan.splitlines()
    at = next(i for i, x in enumerate(lines) if x.startswith("t ") and x.split()[3] == "w")
    parts = lines[at].split()
    parts[4] = str(1 << 62)
    (broken / "plan.txt").write_text("\n".join([*lines[:at], " ".join(parts), *lines[at + 1 :]]) + "\n")
    with pytest.raises(ToolError) as error:
        Folder(broken).execute(processor, values, tmp_path)
    assert "outside of its file" in error.value.log
    (broken / "plan.txt").write_text(plan)
    (broken / "weights.bin").write_bytes(b"short")
    with pytest.raises(ToolError) as error:
        Folder(broken).execute(processor, values, tmp_path)
    assert "shorter than the plan" in error.value.log
    shutil.copy(native / "weights.bin", broken)
    (broken / "plan.txt").write_text("\n".join(plan.splitlines()[:-2]) + "\n")
    with pytest.raises(ToolError) as error:
        Folder(broken).execute(processor, values, tmp_path)
    assert "cut short" in error.value.log
    (broken / "native.json").write_text("{")
    ran = deploy("profile", str(broken), "--remote", "nobody@nowhere", "-o", str(tmp_path / "p"))
    assert ran.code == 2 and "damaged" in ran.err
    ran = deploy("profile", str(tmp_path), "--remote", "nobody@nowhere", "-o", str(tmp_path / "p"))
    assert ran.code == 2 and "deploy native" in ran.err


def test_the_arena_never_shares_live_tensors() -> None:
    rng = np.random.default_rng(0)
    plan = Plan()
    for _ in range(60):
        first = int(rng.integers(0, 40))
        plan.tensors.append(
            Tensor((int(rng.integers(1, 5000)),), "float32", "a", 0, first, first + int(rng.integers(0, 9)))
        )
    _place(plan)
    for i, a in enumerate(plan.tensors):
        assert a.offset % 64 == 0 and a.offset + a.size <= plan.arena
        for b in plan.tensors[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
    assert plan.arena < sum(t.size for t in plan.tensors) / 2


def test_a_board_without_processor_is_refused(fashion_run: Path, tmp_path: Path) -> None:
    ran = deploy("native", str(fashion_run / "export"), "--board", "ulx3s-85f", "-o", str(tmp_path / "n"))
    assert ran.code == 2 and "no processor" in ran.err and not (tmp_path / "n").exists()


@pytest.fixture
def ssh_config(tmp_path: Path) -> Iterator[Path]:
    """An ssh server on this computer with its own keys."""
    if shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin") is None or os.geteuid() != 0:
        pytest.skip("needs sshd and root")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    server = tmp_path / "sshd_config"
    server.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile {tmp_path}/pid\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
        "Subsystem sftp internal-sftp\n"
    )
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {tmp_path}/user\n IdentitiesOnly yes\n"
        f" StrictHostKeyChecking accept-new\n UserKnownHostsFile /dev/null\n"
    )
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(server), "-E", str(tmp_path / "sshd.log")])
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield config
    process.terminate()
    process.wait(10)


def test_profile_over_ssh(native: Path, ssh_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: copy, run there, compare, bring the times back, leave nothing behind. Paths are relative, as one types them."""
    monkeypatch.chdir(tmp_path)
    ssh_config, native = ssh_config.relative_to(tmp_path), Path(os.path.relpath(native, tmp_path))
    before = set(Path("/tmp").glob("deploy-??????"))
    out = tmp_path / "p"
    common = ["profile", str(native), "--ssh-config", str(ssh_config), "--samples", "100", "-o", str(out)]
    ran = deploy(*common, "--remote", "board", "--threads", "2")
    assert ran.code == 0, ran.err
    record = json.loads((out / "profile.json").read_text())
    row = record["candidates"][record["chosen"]]
    assert (
        record["equal"] and row["latency"]["samples"] == 100 and row["threads"] == 2 and len(record["wall_ms"]) == 100
    )
    assert record["conditions"]["machine"] == platform.machine()
    assert 0 < row["latency"]["min_ms"] <= row["latency"]["p50_ms"] <= row["latency"]["p99_ms"]
    assert set(Path("/tmp").glob("deploy-??????")) == before
    assert deploy("report", str(out), "-o", str(tmp_path / "r")).code == 0
    assert "Profile on the board" in (tmp_path / "r" / "report.html").read_text()
    assert deploy("verify", str(out)).code == 0
    bad = deploy(*common[:-1], str(tmp_path / "q"), "--remote", "127.0.0.1")
    assert bad.code == 3 and "ssh 127.0.0.1" in bad.err and not (tmp_path / "q").exists()
    for more, said in ((["--threads", "100000"], "threads"), (["--ssh-config", "nowhere"], "does not exist")):
        bad = deploy(*common[:-1], str(tmp_path / "q"), "--remote", "board", *more)
        assert bad.code == 2 and said in bad.err
    monkeypatch.setattr("hw.native.remote.of_board", lambda name: replace(of_board(name), machines=("armv7l",)))
    bad = deploy(*common[:-1], str(tmp_path / "q"), "--remote", "board")
    assert bad.code == 2 and "the folder is for" in bad.err and set(Path("/tmp").glob("deploy-??????")) == before
