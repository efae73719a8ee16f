"""A standalone folder measured on the board itself: copied over ssh, run there, its results compared with those made here."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import BoundError, ToolError, UserError
from deploy.inputs import InputSpec, examples
from deploy.report.sections import Section, Table
from deploy.tools import Tool, run, tail
from hw.config import ProfileConfig
from hw.native.compile import PLAN, WEIGHTS
from hw.native.folder import PROGRAM, Folder, agreement
from hw.native.processors import of_board
from hw.native.stage import FLOAT_BOUND

SSH, SCP = Tool("ssh", get="apt-get install openssh-client"), Tool("scp", get="apt-get install openssh-client")
SECONDS = 1800
PLACE = re.compile(r"/[\w./-]*deploy-\w{6}")  # what mktemp gives: nothing else is ever removed there


class Remote:
    """One board. Never asks: keys and hosts come from ssh's own configuration (or `config`)."""

    def __init__(self, address: str, config: str, work: Path) -> None:
        if address.startswith("-") or not address.strip("@") or any(c.isspace() for c in address):
            raise UserError(f"--remote {address!r} is no address; give user@host, with the port in ssh's configuration")
        self.address, self._work = address, work
        if config and not Path(config).is_file():
            raise UserError(f"--ssh-config {config} does not exist; give ssh's configuration file")
        given = ["-F", str(Path(config).absolute())] if config else []
        self._options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR", *given]

    def command(self, line: str) -> str:
        """Run a command there; returns what it printed. Raises ToolError with its last lines."""
        log = self._work / "ssh.log"
        try:
            run(SSH, [*self._options, "-n", self.address, line], cwd=self._work, log=log, timeout=SECONDS)
        except ToolError as error:
            last = [x for x in tail(log).splitlines() if x.strip()]
            raise ToolError(f"ssh {self.address}: {last[-1] if last else error}", tail(log)) from error
        return log.read_text(errors="replace")

    def clear(self, place: str) -> None:
        """Stop what still runs in a folder there and remove it; a board that no longer answers hides no earlier error."""
        here = shlex.quote(place)
        stop = (
            f'for p in /proc/[0-9]*; do [ "$(readlink $p/cwd)" = {here} ] && kill "${{p#/proc/}}"; done; rm -rf {here}'
        )
        with contextlib.suppress(ToolError):
            self.command(stop)

    def copy(self, sources: list[str], target: str) -> None:
        log = self._work / "scp.log"
        try:
            run(SCP, ["-q", "-r", *self._options, *sources, target], cwd=self._work, log=log, timeout=SECONDS)
        except ToolError as error:
            last = [x for x in tail(log).splitlines() if x.strip()]
            raise ToolError(f"scp {self.address}: {last[-1] if last else error}", tail(log)) from error


def _said(text: str, mark: str) -> str:
    """What follows a mark in a board's output, among whatever else its shell prints. Raises ToolError."""
    found = [x.removeprefix(mark) for x in text.splitlines() if x.startswith(mark)]
    if not found:
        raise ToolError(f"the board did not answer {mark!r}", text[-2000:])
    return found[-1].strip()


def summarise(record: dict[str, Any], size: int) -> dict[str, Any]:
    """A candidate's row from the runner's times."""
    wall, cpu = np.asarray(record["wall_ms"]), np.asarray(record["cpu_ms"])
    latency = {
        "samples": len(wall), "min_ms": float(wall.min()), **{f"p{p}_ms": float(np.percentile(wall, p)) for p in (50, 90, 99)},
        "cpu_p50_ms": float(np.median(cpu)), "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0,
        "busy": bool(record["threads"] == 1 and np.median(wall) > 1.15 * np.median(cpu)), "verdict": "no difference shown",
    }  # fmt: skip
    return {"latency": latency, "bytes": size, "accuracy": {}, "runtime": "native", "threads": record["threads"]}


def profile(config: ProfileConfig, folder: Path) -> dict[str, Any]:
    """Measure `config.model`, a folder of `deploy native`, on `config.remote`; writes profile.json and returns the summary.

    Raises BoundError where the board computes something else than this computer.
    """
    made = Folder(Path(config.model))
    processor = of_board(made.record["processor"])
    specs = tuple(InputSpec.from_json(r) for r in made.record["inputs"])
    values = examples(specs, config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        want, _ = made.execute(processor, values, work)
        remote = Remote(config.remote, config.ssh_config, work)
        machine = _said(remote.command('echo "machine:$(uname -m)"'), "machine:")
        if machine not in processor.machines:
            raise UserError(
                f"{config.remote} is a {machine}, the folder is for {processor.name}; make one for that board"
            )
        place = _said(remote.command('echo "place:$(mktemp -d -t deploy-XXXXXX)"'), "place:")
        if not PLACE.fullmatch(place) or ".." in place:
            raise ToolError(f"{config.remote} gave no temporary folder: {place!r}")
        try:
            sources = [str(made.path.absolute() / f) for f in (PROGRAM, PLAN, WEIGHTS)] + [str(work / "inputs.bin")]
            remote.copy(sources, f"{config.remote}:{place}/")
            said = remote.command(
                f"cd {shlex.quote(place)} && chmod +x {PROGRAM} && timeout {SECONDS} ./{PROGRAM} . {config.threads} {config.samples} inputs.bin outputs.bin"
            )
            remote.copy([f"{config.remote}:{place}/outputs.bin"], str(work / "there.bin"))
        finally:
            remote.clear(place)
        got = made.plan.unpack((work / "there.bin").read_bytes())
    rows = [x for x in said.splitlines() if x.startswith("{")]
    if not rows:
        raise ToolError(f"the runner on {config.remote} ended without its record", said[-2000:])
    worst, equal, _ = agreement([got], [want])
    if not worst <= (FLOAT_BOUND if made.record["difference"] < FLOAT_BOUND else 0.02):
        raise BoundError(
            f"{config.remote} computes something else than this computer: {worst:.1e} of the largest output"
        )
    size = sum((made.path / f).stat().st_size for f in (PROGRAM, PLAN, WEIGHTS))
    record = json.loads(rows[-1])
    name = f"{processor.name} on {config.remote}"
    summary = {
        "notice": "", "baseline": name, "candidates": {name: summarise(record, size)}, "chosen": name, "why": "measured on the board",
        "conditions": {"machine": machine, "threads": config.threads, "peak_memory_mb": record["peak_memory_mb"]},
    }  # fmt: skip
    detail = {**summary, "remote": config.remote, "difference": worst, "equal": equal, "wall_ms": record["wall_ms"]}
    (folder / "profile.json").write_text(json.dumps(detail, indent=1) + "\n")
    return summary


def section(record: dict[str, Any]) -> Section:
    """The page's part for a board."""
    row = record["candidates"][record["chosen"]]
    t = row["latency"]
    figures = (
        ("samples", str(t["samples"])),
        *((k, f"{t[k]:.3f}") for k in ("min_ms", "p50_ms", "p90_ms", "p99_ms", "cpu_p50_ms")),
    )
    facts = (
        ("board", record["remote"]),
        ("machine", record["conditions"]["machine"]),
        ("p50", f"{t['p50_ms']:.3f} ms, {row['threads']} thread(s)"),
        ("peak memory", f"{record['conditions']['peak_memory_mb']:.1f} MB"),
        (
            "results",
            "bit for bit those of this computer"
            if record["equal"]
            else f"within {record['difference']:.1e} of this computer's",
        ),
    )
    return Section(
        "Profile on the board",
        "",
        facts,
        (Table("Latency", ("what", "value"), figures),),
        (),
        {"chosen": record["chosen"]},
    )
