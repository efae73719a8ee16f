"""The command line itself: speed, exit codes of every kind, dry runs, config files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deploy import cli, errors
from tests.conftest import CALIB, MODEL, deploy


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = "import sys; from deploy.cli import main; main(['--help']); print(sorted({'torch', 'numpy', 'onnx', 'rich'} & set(sys.modules)))"
    best, last = 9.0, ""
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best, last = min(best, time.perf_counter() - start), done.stdout.splitlines()[-1]
    assert last == "[]", f"--help imports {last}"
    assert best < 0.3, f"deploy --help took {best:.2f} s"


def test_no_verb_prints_help_and_fails() -> None:
    ran = deploy()
    assert ran.code == 2 and "compress" in ran.out


def test_version() -> None:
    assert deploy("--version").out.startswith("deploy 0.")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (errors.UserError("wrong"), 2, "deploy: wrong"),
        (errors.ToolError("yosys failed", "line a\nline b"), 3, "  | line b\ndeploy: yosys failed"),
        (errors.BoundError("missed"), 4, "deploy: missed"),
        (OSError(28, "No space left on device", "/x"), 2, "No space left"),
        (ValueError("oops"), 70, "this is a bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(cli, "_dispatch", fail)
    ran = deploy("boards")
    assert ran.code == code and words in ran.err
    assert ("Traceback" in ran.err) == (code == 70)


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    ran = deploy("compress", MODEL, "--calib", CALIB, "--dry-run", "-o", str(tmp_path / "out"))
    assert ran.code == 0 and "quantize weights to 8 bits" in ran.out
    assert list(tmp_path.iterdir()) == []
    ran = deploy("all", MODEL, "--bits", "4", "--dry-run", "-o", str(tmp_path / "out"))
    assert ran.code == 0 and "export:" in ran.out and list(tmp_path.iterdir()) == []


def test_saved_config_repeats_the_run(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    flags = ["compress", MODEL, "--calib", "random", "--calib-samples", "32", "--bits", "5", "--layer", "head=8"]
    assert deploy(*flags, "-o", str(tmp_path / "a"), "--save-config", str(saved)).code == 0
    assert yaml.safe_load(saved.read_text())["bits"] == 5
    ran = deploy("compress", "-c", str(saved), "-o", str(tmp_path / "b"), "--json")
    keys = [json.loads((tmp_path / n / "manifest.json").read_text())["key"] for n in ("a", "b")]
    assert ran.code == 0 and keys[0] == keys[1]
    assert json.loads(ran.out)["summary"]["bits"] == 5


def test_doctor_and_boards_as_json() -> None:
    assert json.loads(deploy("doctor", "--json").out)["found"]["torch"]["found"].startswith("2.")
    assert json.loads(deploy("boards", "--json").out)["boards"]["pynq-z2"]["dsp"] == 220
