"""Error messages and hints for a configuration with an unknown setting or an invalid value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec

from ergo_capture.config.graphs import EgressChannelConfig, EngineConfig, GraphConfig, GraphRetentionConfig
from ergo_capture.config.printing import toml_key
from ergo_capture.config.settings import Config
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig, TargetConfig
from ergo_capture.units import decode_unit

_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]+)`")
_ENGINES: Final = get_args(EngineConfig)
#: Settings of a graph that are tables.
_TABLES: Final = ("retention", "egress", "engine")


def describe(message: str, data: Mapping[str, Any]) -> str:
    """Return msgspec's error message, preceded by the setting's full name.

    Args:
        message: msgspec's message.
        data: the decoded file.
    """
    match = _PATH.search(message)
    where, text = match[1] if match else "", _PATH.sub("", message)
    key = where.replace("[...]", f".{toml_key(_invalid_table(where, data))}", 1).replace("[...]", ".NAME")
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"there is no setting `{key}.{unknown[1]}`" if key else f"there is no setting `{unknown[1]}`"
    choices = _choices(where)
    if choices:
        text += f", expected one of {', '.join(f'`{choice}`' for choice in choices)}"
    return f"`{key}`: {text}" if key else text


def _invalid_table(where: str, data: Mapping[str, Any]) -> str:
    """Return the name of the graph or target with an invalid table; msgspec's paths have ``[...]`` for every name."""
    kind: type[msgspec.Struct] = GraphConfig
    tables = data.get("graphs")
    if where.startswith("ship."):
        kind, tables = TargetConfig, data["ship"].get("targets")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        try:
            msgspec.convert(table, type=kind, dec_hook=decode_unit)
        except msgspec.ValidationError:
            return str(name)
    return "NAME"


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
