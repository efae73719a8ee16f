"""One driver for every external tool: version probe, argv list, declared outputs, timeout, log; failures are ToolErrors."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolError, UserError


@dataclass(frozen=True)
class Tool:
    """An executable: its name, how it prints its version, the least version that works, how to get it; `path` where it is
    not looked for on PATH."""

    name: str
    probe: tuple[str, ...] = ("--version",)
    minimum: tuple[int, ...] = ()
    get: str = ""
    path: str = ""

    def find(self) -> str | None:
        return shutil.which(self.path or self.name)

    def version(self) -> tuple[int, ...] | None:
        """The first dotted number that the probe prints, or None where the tool is missing or prints none."""
        path = self.find()
        if path is None:
            return None
        try:
            done = subprocess.run(
                [path, *self.probe], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
        return tuple(int(n) for n in match[0].split(".")) if match else None

    def require(self) -> str:
        """The path of the executable. Raises UserError when it is missing or older than the minimum."""
        path = self.find()
        if path is None:
            raise UserError(f"{self.name} is not on PATH; {self.get or 'install it'}")
        if self.minimum:
            found = self.version()
            if found is None or found < self.minimum:
                shown = ".".join(map(str, found)) if found else "of unknown version"
                raise UserError(
                    f"{self.name} {shown} is older than {'.'.join(map(str, self.minimum))}; {self.get or 'update it'}"
                )
        return path


def run(
    tool: Tool,
    args: list[str],
    *,
    cwd: Path,
    log: Path,
    outputs: tuple[Path, ...] = (),
    timeout: float = 3600,
    env: Mapping[str, str] | None = None,
) -> float:
    """Run `tool args` in `cwd`, all output into `log`; returns the seconds it took.

    Raises ToolError when it fails, runs over `timeout` seconds, or leaves a declared output missing, empty or old.
    """
    argv = [tool.require(), *args]
    started_ns = time.time_ns()
    clock = time.monotonic()
    with log.open("wb") as sink:
        try:
            code = subprocess.run(
                argv,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                env=dict(env) if env is not None else None,
            ).returncode
        except subprocess.TimeoutExpired:
            raise ToolError(
                f"{tool.name} ran over {timeout:.0f} s and was stopped; its log is {log}", tail(log)
            ) from None
    if code != 0:
        raise ToolError(f"{tool.name} failed with exit code {code}; its log is {_keep(log)}", tail(log))
    for path in outputs:
        if not path.is_file() or path.stat().st_size == 0:
            raise ToolError(f"{tool.name} ended without writing {path.name}; its log is {log}", tail(log))
        if path.stat().st_mtime_ns < started_ns - 2_000_000_000:
            raise ToolError(f"{tool.name} left an old {path.name} in place; its log is {log}", tail(log))
    return time.monotonic() - clock


def _keep(log: Path) -> Path:
    """A copy of a log that outlives the temporary folder it may be in."""
    kept = Path(tempfile.gettempdir()) / f"deploy-{log.name}"
    try:
        shutil.copy(log, kept)
    except OSError:
        return log
    return kept


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
