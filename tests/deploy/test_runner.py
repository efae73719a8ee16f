"""Several processes of one command: who publishes, and what makes a result the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.config import CompressConfig
from deploy.runner import processes, rank, settings_of


@pytest.mark.parametrize(
    ("env", "number", "count"),
    [
        ({}, 0, 1),
        ({"RANK": "1"}, 0, 1),  # a variable that some scheduler left behind
        ({"RANK": "1", "WORLD_SIZE": "2"}, 0, 1),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, 1, 2),
        ({"RANK": "abc", "WORLD_SIZE": "x", "MASTER_ADDR": "localhost"}, 0, 1),
    ],
)
def test_rank(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], number: int, count: int) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (rank(), processes()) == (number, count)


def test_a_path_counts_by_its_content_and_a_function_by_its_name(tmp_path: Path) -> None:
    data, code = tmp_path / "a.npz", tmp_path / "own.py"
    found = settings_of(CompressConfig(train=str(data), loss="own:first"), {"train": data, "loss": code})
    assert "train" not in found and found["loss"] == "own:first"
