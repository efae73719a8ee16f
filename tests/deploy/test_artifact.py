"""Artifact folders: whole or absent, reused only when everything matches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import artifact
from deploy.config import argument, option
from deploy.errors import UserError
from deploy.runner import execute
from deploy.stage import Outcome, Stage
from tests.conftest import CALIB, MODEL, deploy


@dataclass(frozen=True)
class Config:
    model: str = argument("input")
    output: str = option("out", "", identity=False)
    text: str = option("a", "")
    seed: int = option(0, "")


def _stage(calls: list[str], fail: bool = False) -> Stage:
    def run(config: Config, folder: Path) -> dict[str, str]:
        calls.append(config.text)
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(config.text)
        if fail:
            raise OSError(28, "No space left on device", str(folder))
        return {"text": config.text}

    return Stage("toy", "", Config, lambda c: {"model": Path(c.model)}, lambda c: [], run, lambda s, f: Outcome())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.bin"
    path.write_bytes(b"1")
    return path


def test_reuse_and_rebuild(tmp_path: Path, source: Path) -> None:
    calls: list[str] = []
    stage, out = _stage(calls), tmp_path / "out"
    make = lambda text: execute(stage, Config(str(source), str(out), text))  # noqa: E731
    assert not make("a").reused and make("a").reused
    assert not make("b").reused
    source.write_bytes(b"2")
    assert not make("b").reused
    (out / "sub" / "file.txt").write_text("tampered")
    assert not make("b").reused and (out / "sub" / "file.txt").read_text() == "b"
    assert calls == ["a", "b", "b", "b"]


def test_failure_leaves_the_old_folder(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    execute(_stage([]), Config(str(source), str(out), "old"))
    with pytest.raises(OSError, match="No space"):
        execute(_stage([], fail=True), Config(str(source), str(out), "new"))
    assert (out / "sub" / "file.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.bin", "out"]


def test_output_over_input_is_refused(tmp_path: Path, source: Path) -> None:
    execute(_stage([]), Config(str(source), str(tmp_path / "out")))
    with pytest.raises(UserError, match="its own input"):
        execute(_stage([]), Config(str(tmp_path / "out"), str(tmp_path / "out")))


def test_killed_replacement_is_put_back(tmp_path: Path, source: Path) -> None:
    """A run that died between the two renames left the old folder under a hidden name."""
    out = tmp_path / "out"
    execute(_stage([]), Config(str(source), str(out), "old"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    os.rename(out, tmp_path / f".out.old-{dead.pid}-abc")
    (tmp_path / f".out.tmp-{dead.pid}-abc").mkdir()
    calls: list[str] = []
    assert execute(_stage(calls), Config(str(source), str(out), "new")).manifest["summary"] == {"text": "new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.bin", "out"]


def test_unsafe_names_count_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    manifest = {"files": {"../f": {"sha256": artifact.sha256_file(tmp_path / "f")}}}
    (tmp_path / "sub").mkdir()
    assert artifact.damaged(tmp_path / "sub", manifest) == ["../f"]


def test_write_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    artifact.write_file(target, b"one")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        artifact.write_file(target, b"two")
    assert target.read_bytes() == b"one" and list(tmp_path.iterdir()) == [target]


def _start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_kill_9_then_resume(tmp_path: Path) -> None:
    """Killed in mid-run: no output folder; the next run clears the debris and finishes."""
    out = tmp_path / "out"
    flags = ["compress", MODEL, "--bits", "4", "--calib", CALIB, "-o", str(out)]
    child = _start(*flags)
    deadline = time.time() + 120
    while not list(tmp_path.glob(".out.tmp-*")) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists() and len(list(tmp_path.glob(".out.tmp-*"))) == 1
    assert deploy(*flags).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert "reused" in deploy(*flags).out


def test_full_disk(tmp_path: Path) -> None:
    """A file system of 300 kB (tmpfs in a mount namespace of its own): exit 2, one sentence, nothing left."""
    place = tmp_path / "small"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=300k none {place} && {sys.executable} -m deploy compress {MODEL} --calib random "
        f"-o {place}/out; code=$?; ls -A {place}; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:  # no namespaces here: a file size limit is the next best
        script = f"ulimit -f 200; trap '' XFSZ; {sys.executable} -m deploy compress {MODEL} --calib random -o {place}/out; code=$?; ls -A {place}; exit $code"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.strip().splitlines()[-1].startswith("deploy: ")
    assert done.stdout.strip() == ""


def test_a_foreign_manifest_or_file_is_never_deleted(tmp_path: Path, source: Path) -> None:
    """A web app's manifest.json, or a user's own file in an old output folder: refused, untouched."""
    web, own = tmp_path / "web", tmp_path / "own"
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "app"}')
    execute(_stage([]), Config(str(source), str(own)))
    (own / "notes.txt").write_text("mine")
    for folder, kept in ((web, "manifest.json"), (own, "notes.txt")):
        with pytest.raises(UserError, match="did not write"):
            execute(_stage([]), Config(str(source), str(folder), "b"))
        assert (folder / kept).exists()


def test_two_functions_of_one_module_are_two_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pkg.mod:f` and `pkg.mod:g` share a file; an edit of that file makes both new."""
    (tmp_path / "my_batches.py").write_text(
        "import numpy as np\n"
        "def f():\n    yield np.zeros((8, 1, 28, 28), np.float32) + np.linspace(0, 1, 28, dtype=np.float32)\n"
        "def g():\n    yield np.ones((8, 1, 28, 28), np.float32) * np.linspace(0, 1, 28, dtype=np.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["compress", MODEL, "-o", str(tmp_path / "out"), "-q"]
    assert "wrote" in deploy(*flags, "--calib", "my_batches:f").out
    assert "reused" in deploy(*flags, "--calib", "my_batches:f").out
    assert "wrote" in deploy(*flags, "--calib", "my_batches:g").out
    with (tmp_path / "my_batches.py").open("a") as stream:
        stream.write("# edited\n")
    assert "wrote" in deploy(*flags, "--calib", "my_batches:g").out
