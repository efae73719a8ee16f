"""The house rules that a machine can check: style, types, floors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "argv",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    ids=["ruff", "format", "mypy", "floors"],
)
def test_tool(argv: list[str]) -> None:
    tool = Path(sys.executable).with_name(argv[0])
    done = subprocess.run([str(tool), *argv[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_files_stay_short() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in ROOT.rglob("*.py")
        if ".venv" not in p.parts and (n := len(p.read_text().splitlines())) > 400
    }
    assert not long, long


def test_test_files_have_names_of_their_own() -> None:
    """Two of one name are one module to pytest."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
