"""One dataclass per command drives its flags, its config file, its help and its record in the manifest."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import UserError


def argument(help: str, default: Any = dataclasses.MISSING, many: bool = False) -> Any:
    """A positional field."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": True, "many": many})


def option(
    default: Any,
    help: str,
    *,
    short: str = "",
    choices: tuple[str, ...] = (),
    identity: bool = True,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A flag. `identity=False` keeps the field out of the hash that decides whether a result can be reused."""
    return dataclasses.field(
        default=default,
        metadata={"help": help, "short": short, "choices": choices, "identity": identity, "low": low, "high": high},
    )


def hints(config: type) -> dict[str, Any]:
    """Field name -> its plain type, with `X | None` reduced to X."""
    found = {}
    for name, hint in typing.get_type_hints(config).items():
        arms = [a for a in typing.get_args(hint) if a is not type(None)]
        found[name] = arms[0] if isinstance(hint, types.UnionType) and len(arms) == 1 else hint
    return found


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one flag (or positional) per field; absent flags leave no attribute, so that a config file can fill in."""
    types_of = hints(config)
    for field in dataclasses.fields(config):
        meta, kind = field.metadata, types_of[field.name]
        has_default = field.default is not dataclasses.MISSING
        text = meta.get("help", "")
        if has_default and field.default not in (None, (), "", False):
            text += f" (default: {field.default})"
        text = text.replace("%", "%%")
        if meta.get("positional"):
            nargs = "+" if meta.get("many") else "?"
            parser.add_argument(field.name, nargs=nargs, default=argparse.SUPPRESS, help=text)
            continue
        names = ["--" + field.name.replace("_", "-")]
        if meta.get("short"):
            names.insert(0, meta["short"])
        if kind is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(
                *names,
                action="append",
                default=argparse.SUPPRESS,
                help=text + " (repeatable)",
                metavar=field.name.upper(),
            )
        else:
            shown = "{" + ",".join(meta["choices"]) + "}" if meta.get("choices") else field.name.upper()
            parser.add_argument(*names, default=argparse.SUPPRESS, help=text, metavar=shown)


def read_file(path: Path) -> dict[str, Any]:
    """Parse a YAML (or JSON) config file into a mapping; raises UserError when it is not one."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist; check the path given to --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} is not valid YAML: {str(error).splitlines()[0]}; mend that line") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(
            f"config file {path} holds a {type(loaded).__name__}; it must be a mapping of flag names to values"
        )
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def _convert(name: str, value: Any, kind: Any, meta: Mapping[str, Any]) -> Any:
    flag = "--" + name.replace("_", "-")
    try:
        if typing.get_origin(kind) is tuple:
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(str(item) for item in items)
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is int:
            if isinstance(value, float) and value != int(value):
                raise ValueError
            converted: Any = int(value)
        elif kind is float:
            converted = float(value)
            if not math.isfinite(converted):
                raise ValueError
        else:
            converted = str(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{flag} takes {'a' if kind is not int else 'a whole'} "
            f"{'number' if kind in (int, float) else kind.__name__}, not {value!r}"
        ) from None
    if meta.get("choices") and converted not in meta["choices"]:
        near = difflib.get_close_matches(str(converted), meta["choices"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{flag} takes one of {', '.join(meta['choices'])}, not {value!r}{hint}")
    low, high = meta.get("low"), meta.get("high")
    if kind in (int, float) and not ((low is None or converted >= low) and (high is None or converted <= high)):
        raise UserError(
            f"{flag} takes {low if low is not None else ''}..{high if high is not None else ''}, not {value!r}"
        )
    return converted


def build(config: type, values: dict[str, Any], where: str = "the config file") -> Any:
    """Make the dataclass from raw values: unknown keys refused with the nearest match, types and ranges checked."""
    fields = {f.name: f for f in dataclasses.fields(config)}
    types_of = hints(config)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise UserError(
                f"{where} has the unknown key {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(fields))}")
            )
    converted = {k: _convert(k, v, types_of[k], fields[k].metadata) for k, v in values.items() if v is not None}
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in converted:
            raise UserError(
                f"{name.upper()} is missing: {field.metadata.get('help', '')}; give it on the command line or in --config"
            )
    return config(**converted)


def as_dict(config: Any, identity_only: bool = False) -> dict[str, Any]:
    """Plain values of a config; with identity_only, without the fields that do not change the result."""
    rows = {}
    for field in dataclasses.fields(config):
        if identity_only and not field.metadata.get("identity", True):
            continue
        value = getattr(config, field.name)
        rows[field.name] = list(value) if isinstance(value, tuple) else value
    return rows


def merge(name: str, parts: list[type], skip: frozenset[str]) -> type:
    """One dataclass with the fields of several (first definition of a name wins), without those in `skip`."""
    fields: dict[str, Any] = {}
    for part in parts:
        kinds = typing.get_type_hints(part)
        for field in dataclasses.fields(part):
            if field.name not in skip and field.name not in fields:
                fields[field.name] = (
                    field.name,
                    kinds[field.name],
                    dataclasses.field(default=field.default, metadata=field.metadata),
                )
    return dataclasses.make_dataclass(name, list(fields.values()), frozen=True, kw_only=True)


def subset(config: type, values: Any, **extra: Any) -> Any:
    """Make `config` from the equally named fields of another config object."""
    names = {f.name for f in dataclasses.fields(config)}
    return config(**{k: getattr(values, k) for k in names if hasattr(values, k) and k not in extra}, **extra)
