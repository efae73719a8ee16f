"""`deploy doctor`: every package and tool that a stage wants: found, version, what works without it, how to get it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from deploy.stage import Command, Outcome, discover
from deploy.tools import Tool


@dataclass(frozen=True)
class DoctorConfig:
    """`deploy doctor` has no settings."""


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _tool(name: str, probe: tuple[str, ...]) -> str:
    tool = Tool(name, probe or ("--version",))
    if tool.find() is None:
        return ""
    found = tool.version()
    return ".".join(map(str, found)) if found else "found"


def run(config: DoctorConfig) -> Outcome:
    rows = [("python", platform.python_version(), "", "")]
    data = {"python": {"found": platform.python_version()}}
    for verb in discover().values():
        for need in verb.requirements:
            if need.name in data:
                continue
            found = _package(need.name) if need.kind == "package" else _tool(need.name, need.probe)
            rows.append((need.name, found or "missing", need.without, "" if found else need.get))
            data[need.name] = {"found": found, "without": need.without, "get": need.get}
    width = [max(len(r[i]) for r in rows) for i in range(3)]
    lines = tuple(
        f"{'ok ' if r[1] != 'missing' else 'no '} {r[0]:{width[0]}}  {r[1]:{width[1]}}  "
        + (f"without it: {r[2]:{width[2]}}" if r[2] else "")
        + (f"  get it: {r[3]}" if r[3] else "")
        for r in rows
    )
    return Outcome(lines, {"found": data})


COMMAND = Command("doctor", "list the packages and tools found, and how to get the others", DoctorConfig, run, order=70)
