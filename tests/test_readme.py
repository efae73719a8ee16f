"""README's commands run, and print what README says they print (figures aside)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Lines that start with `$ deploy` in README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ deploy")]


def test_commands_of_the_readme(tmp_path: Path) -> None:
    """Every `$ deploy ...` line, in order, in a folder that holds examples/ as a clone does."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    found = commands()
    assert len(found) >= 5
    for command in found:
        argv = [sys.executable, "-m", *shlex.split(command.partition(" #")[0])]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_test_command_is_the_one_ci_runs() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    assert len(blocks) == 2, "two commands for a fresh machine"
    assert "deploy all" in blocks[0] and "pytest" in blocks[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_measured_tables_are_those_of_bench() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.readme", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
