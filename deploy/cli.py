"""The command line: `deploy VERB ...`. Flags come from each verb's config dataclass; exit codes from deploy.errors."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from deploy import __version__, config, errors
from deploy.runner import rank
from deploy.stage import Command, Outcome, Stage, discover

_FILE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.EEXIST,
    errno.ELOOP,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise errors.UserError(f"{message}; see '{self.prog} --help'")


def _parser(verbs: dict[str, Stage | Command]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="deploy",
        description="From a trained PyTorch model to a bitstream or a fast runtime.",
        epilog="exit codes: 0 done, 2 your input, 3 an external tool failed, 4 a result missed its bound, 70 a bug",
    )
    parser.add_argument("--version", action="version", version=f"deploy {__version__}")
    sub = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, verb in verbs.items():
        p = sub.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        config.add_flags(p, verb.config)
        g = p.add_argument_group("common")
        g.add_argument("-c", "--config", metavar="FILE", help="YAML file with a key for every flag; flags win")
        g.add_argument("--save-config", metavar="FILE", help="write the resolved config to FILE")
        g.add_argument("--json", action="store_true", help="machine-readable result on stdout")
        g.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
        if isinstance(verb, Stage):
            g.add_argument("--dry-run", action="store_true", help="print the plan, touch nothing")
    return parser


def _hush() -> None:
    """Keep the chatter of libraries (deprecations, missing CUDA) away from users; errors stay."""
    warnings.simplefilter("ignore")
    for library in ("torch.utils.cpp_extension", "torch.onnx", "torch.export"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _show(outcome: Outcome, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({**outcome.data, "next": outcome.next, "exit": outcome.code}, indent=1) + "\n")
    else:
        for line in outcome.lines:
            sys.stdout.write(line + "\n")
        if outcome.next:
            sys.stdout.write(f"next: {outcome.next}\n")
    return outcome.code


def _run_stage(stage: Stage, settings: Any, dry_run: bool) -> Outcome:
    from deploy.runner import execute

    if dry_run:
        steps = stage.plan(settings)
        for name, path in stage.inputs(settings).items():
            if not path.exists():
                raise errors.UserError(f"{name} {path} does not exist; check the path")
        return Outcome(tuple(f"{i}. {step}" for i, step in enumerate(steps, 1)), {"plan": steps})
    done = execute(stage, settings)
    outcome = stage.describe(done.manifest["summary"], done.folder)
    size = sum(row["bytes"] for row in done.manifest["files"].values())
    verb = "reused" if done.reused else "wrote"
    lines = (
        *outcome.lines,
        f"{verb} {_relative(done.folder)} ({size / 1e6:.2f} MB in {len(done.manifest['files'])} files, "
        f"{done.manifest['wall_seconds']:.1f} s)",
    )
    data = {"output": str(done.folder), "reused": done.reused, "summary": done.manifest["summary"], **outcome.data}
    return Outcome(lines, data, outcome.next, outcome.code)


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _dispatch(argv: list[str]) -> int:
    verbs = discover()
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, 1)
        raise errors.UserError(
            f"unknown verb {argv[0]!r}"
            + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(verbs)}")
        )
    parser = _parser(verbs)
    given = vars(parser.parse_args(argv))
    name = given.pop("verb")
    if name is None:
        parser.print_help()
        return errors.USER
    file, save, as_json = given.pop("config"), given.pop("save_config"), given.pop("json")
    quiet = given.pop("quiet") or rank() > 0
    dry_run = isinstance(verbs[name], Stage) and given.pop("dry_run")
    from deploy import progress

    progress.use("silent" if quiet else "bar" if sys.stderr.isatty() else "lines")
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR if quiet else logging.WARNING, format="%(message)s")
    for package in ("deploy", "boards", "compress", "export", "hw"):
        logging.getLogger(package).setLevel(logging.ERROR if quiet else logging.INFO)
    _hush()
    verb = verbs[name]
    values = {**(config.read_file(Path(file)) if file else {}), **given}
    settings = config.build(verb.config, values, f"config file {file}")
    if save:
        import yaml

        from deploy.artifact import write_file

        write_file(Path(save), yaml.safe_dump(config.as_dict(settings), sort_keys=False).encode())
    outcome = _run_stage(verb, settings, dry_run) if isinstance(verb, Stage) else verb.run(settings)
    return _show(outcome, as_json) if rank() == 0 else outcome.code


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code and never raises."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except SystemExit as stop:  # argparse --help and --version
        return int(stop.code or 0)
    except errors.ToolError as error:
        tail = "".join(f"  | {line}\n" for line in error.log.splitlines()[-20:])
        sys.stderr.write(f"{tail}deploy: {error}\n")
        return error.code
    except errors.DeployError as error:
        sys.stderr.write(f"deploy: {error}\n")
        return error.code
    except KeyboardInterrupt:
        sys.stderr.write("deploy: interrupted; nothing was left half-written\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except OSError as error:
        if error.errno in _FILE_ERRORS:
            sys.stderr.write(
                f"deploy: {error.filename or 'a file'}: {error.strerror}; free the space or give another path\n"
            )
            return errors.USER
        return _bug(argv)
    except Exception:
        return _bug(argv)


def _bug(argv: list[str]) -> int:
    traceback.print_exc()
    sys.stderr.write(
        f"deploy: this is a bug; please report it with the lines above and the command: deploy {shlex.join(argv)}\n"
    )
    return errors.BUG


def entry() -> None:
    """Console script."""
    sys.exit(main())
