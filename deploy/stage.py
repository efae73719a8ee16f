"""What a command or a stage tells the frame about itself. Stages announce a `Stage` or `Command` through the
entry-point group `deploy.stages`; the module that holds it must import no heavy package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from deploy.errors import UserError

GROUP = "deploy.stages"


@dataclass(frozen=True)
class Requirement:
    """A package or an executable that a stage uses; rows of `deploy doctor`."""

    name: str
    kind: str  # "package" or "tool"
    without: str
    get: str
    probe: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a finished command says: lines for people, data for `--json`, the next command to type."""

    lines: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    next: str = ""
    code: int = 0


@dataclass(frozen=True)
class Command:
    """A verb that writes no artifact. `run(config)` does it."""

    name: str
    help: str
    config: type
    run: Callable[[Any], Outcome]
    order: int = 100
    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A verb that writes one artifact folder.

    inputs(config): name -> path of every file or folder whose content decides the result.
    plan(config): the steps, as text, without side effects.
    run(config, folder): writes files into `folder`, returns the summary stored in the manifest.
    describe(summary, folder): lines for people, the last element being the next command.
    section(folder, manifest): the stage's part of the report (see deploy.report.sections).
    check(folder, seed, arch): fresh parity checks for `deploy verify`: (name, passed, figure) rows.
    after: the stage whose folder it takes in a chain; '' for the one before.
    wanted(config): whether a chain with these settings includes it.
    """

    name: str
    help: str
    config: type
    inputs: Callable[[Any], dict[str, Path]]
    plan: Callable[[Any], list[str]]
    run: Callable[[Any, Path], dict[str, Any]]
    describe: Callable[[dict[str, Any], Path], Outcome]
    section: Callable[[Path, dict[str, Any]], Any] | None = None
    check: Callable[[Path, int, str], list[tuple[str, bool, str]]] | None = None
    order: int = 100
    in_chain: bool = True
    after: str = ""
    wanted: Callable[[Any], bool] = lambda config: True
    packages: tuple[str, ...] = ()
    machine: bool = False  # the result depends on this computer, so another one does not reuse it
    requirements: tuple[Requirement, ...] = ()
    fleeting: Callable[[Any], bool] = lambda config: False  # its input is gone afterwards (a camera): nothing to reuse


def lazy(target: str) -> Callable[..., Any]:
    """A function by `module:name` that is imported when it is first called, so that stage modules stay light."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def discover() -> dict[str, Stage | Command]:
    """Every announced verb by name, in the order of its `order`.

    Raises UserError when an installed package announces something that is neither a Stage nor a Command.
    """
    found: list[Stage | Command] = []
    for entry in entry_points(group=GROUP):
        try:
            verb = entry.load()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the verb {entry.name!r} of package {entry.dist.name if entry.dist else '?'} "
                f"cannot be loaded ({error}); reinstall or uninstall that package"
            ) from error
        if not isinstance(verb, (Stage, Command)):
            raise UserError(
                f"the entry point {entry.name!r} in {GROUP} is a {type(verb).__name__}, not a Stage; uninstall it"
            )
        found.append(verb)
    return {verb.name: verb for verb in sorted(found, key=lambda v: (v.order, v.name))}
