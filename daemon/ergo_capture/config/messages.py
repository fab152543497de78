"""Error messages and hints for a configuration with an unknown setting or an invalid value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final, get_args

import msgspec

from ergo_capture.config.graphs import EgressChannelConfig, EngineConfig, GraphConfig, GraphRetentionConfig
from ergo_capture.config.printing import toml_key
from ergo_capture.config.settings import Config
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig, TargetConfig
from ergo_capture.units import decode_unit

_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")
_KEYS: Final = re.compile(r"[^.\[]+|\[[^\]]*\]")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]+)`")
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
#: The message of a table's own check begins with the setting.
_NAMED: Final = re.compile(r"`([^`]+)`")
_ENGINES: Final = get_args(EngineConfig)
#: Settings of a graph that are tables.
_TABLES: Final = ("retention", "egress", "engine")


def mistakes(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a message and a hint for every setting that is unknown, missing or invalid.

    msgspec reports the first one only, so each is left out of ``data`` once it is found.

    Args:
        data: the decoded file.
    """
    left_out: list[list[str]] = []
    while error := _error_in(data):
        match = _PATH.search(error)
        where, text = match[1] if match else "", _PATH.sub("", error)
        place = _place(where, error, data)
        missing, unknown = _MISSING.match(text), _UNKNOWN.search(text)
        if left_out and not where and not unknown:
            # A check of several tables may only miss what was left out.
            return
        names = missing or unknown or _NAMED.match(text)
        named = [*place, names[1]] if names else place
        # A required setting that was left out because it is invalid is not missing.
        if not missing or named not in left_out:
            yield _describe(where, text, place), hint_for(error)
        left_out.append(named)
        if not _leave_out(data, place if missing else named):
            return


def _error_in(data: dict[str, Any]) -> str:
    """Return msgspec's error message; empty if there is none."""
    try:
        msgspec.convert(data, type=Config, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _place(where: str, error: str, data: dict[str, Any]) -> list[str]:
    """Return the keys that lead to a setting or table, with names where msgspec's path has ``[...]``."""
    place: list[str] = []
    table: Any = data
    for shown in _KEYS.findall(where):
        key = shown
        if shown == "[...]":
            # The first entry with which alone the error is the same.
            key = next(name for name in table if _error_in(_with(data, place, {name: table[name]})) == error)
        elif shown.startswith("["):
            # An element of a list is left out with its list: the others would get other numbers.
            break
        place.append(key)
        table = table[key]
    return place


def _with(data: dict[str, Any], place: list[str], value: Any) -> Any:
    """Return a copy of ``data`` with another value at a place."""
    return {**data, place[0]: _with(data[place[0]], place[1:], value)} if place else value


def _leave_out(data: dict[str, Any], place: list[str]) -> bool:
    """Remove a setting or table; return False if it is not there."""
    if not place:
        return False
    for key in place[:-1]:
        data = data[key]
    return data.pop(place[-1], None) is not None


def _describe(where: str, text: str, place: list[str]) -> str:
    """Return msgspec's error message, preceded by the setting's full name.

    Args:
        where: msgspec's path, with ``[...]`` for names.
        text: its message without the path.
        place: the keys that lead there.
    """
    key = where
    for name, shown in zip(place, _KEYS.findall(where), strict=False):
        if shown == "[...]":
            key = key.replace("[...]", f".{toml_key(name)}", 1)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"there is no setting `{key}.{unknown[1]}`" if key else f"there is no setting `{unknown[1]}`"
    choices = _choices(where)
    if choices:
        text += f", expected one of {', '.join(f'`{choice}`' for choice in choices)}"
    return f"`{key}`: {text}" if key else text


def _choices(where: str) -> list[str]:
    """Return the values that a setting may have, if it is one of a few words."""
    if where == "graphs[...].engine.kind":
        return [str(engine.__struct_config__.tag) for engine in _ENGINES]
    section, _, key = where.partition(".")
    if where.startswith("ship.targets[...]."):
        return _words(TargetConfig, where.rpartition(".")[2])
    for field in msgspec.structs.fields(Config):
        if field.name == section and key in getattr(field.type, "__struct_fields__", ()):
            return _words(field.type, key)
    return []


def _words(table: type[msgspec.Struct], key: str) -> list[str]:
    """Return the words that a setting of a table may be; empty if it may have other values."""
    kinds = (setting.type for setting in msgspec.structs.fields(table) if setting.name == key)
    choices = [choice for kind in kinds for choice in get_args(kind)]
    return [word for choice in choices for word in get_args(choice) or [choice] if isinstance(word, str)]


def hint_for(message: str) -> str:
    """Return the hint for msgspec's error message: the setting that was probably meant, if one is similar."""
    unknown, match = _UNKNOWN.search(message), _PATH.search(message)
    if not unknown and match and match[1] in ("graphs[...].engine.kind", "graphs[...].engine.command"):
        return 'write a table, such as engine = { kind = "process", command = ["python3", "engine.py"] }'
    if not unknown:
        return "`ergo-capture config default` prints every setting with its default"
    where = match[1].replace("[...]", ".NAME") if match else ""
    known = [key.removeprefix(f"{where}.").partition(".")[0] for key in known_keys() if key.startswith(f"{where}.")]
    if where == "graphs.NAME.engine":
        known = ["kind", *(key for engine in _ENGINES for key in engine.__struct_fields__)]
    close = difflib.get_close_matches(unknown[1], known if where else Config.__struct_fields__, n=1)
    return f"did you mean `{close[0]}`?" if close else "`ergo-capture config default` prints every setting"


def known_keys() -> list[str]:
    """Return every setting as ``section.key``, in the order of the file; those of graphs as ``graphs.NAME.key``."""
    keys = []
    for field in msgspec.structs.fields(Config):
        if field.name == "ship":
            keys += [f"ship.{key}" for key in ShipConfig.__struct_fields__ if key not in ("announce", "targets")]
            keys += [f"ship.announce.{key}" for key in AnnounceConfig.__struct_fields__]
            keys += [f"ship.targets.NAME.{key}" for key in TargetConfig.__struct_fields__]
            continue
        if field.name != "graphs":
            keys += [f"{field.name}.{key}" for key in field.type.__struct_fields__]
            continue
        keys += [f"graphs.NAME.{key}" for key in GraphConfig.__struct_fields__ if key not in _TABLES]
        keys += [f"graphs.NAME.retention.{key}" for key in GraphRetentionConfig.__struct_fields__]
        keys += [f"graphs.NAME.egress.NAME.{key}" for key in EgressChannelConfig.__struct_fields__]
        for engine in _ENGINES:
            keys += [f"graphs.NAME.engine.{key}" for key in ("kind", *engine.__struct_fields__)]
    return keys
