"""The configuration as a TOML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Meta

from ergo_capture.config.settings import Config, GraphRetentionConfig
from ergo_capture.units import Duration, Mode, Size


def to_toml(config: Config, *, comments: bool = False) -> str:
    """The configuration as a file; with ``comments``, each setting under its description."""
    lines: list[str] = []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if field.name == "graphs":
            for name, graph in value.items():
                lines += _table(f"graphs.{toml_key(name)}", graph, comments=comments)
        else:
            lines += _table(field.name, value, comments=comments)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(name: str, section: msgspec.Struct, *, comments: bool) -> list[str]:
    lines = ["", f"# {(type(section).__doc__ or '').strip()}"] if comments else [""]
    lines.append(f"[{name}]")
    info = msgspec.inspect.type_info(type(section))
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        value = getattr(section, field.encode_name)
        if comments:
            description = _description(type(section), field.encode_name)
            lines.append(f"# {description}")
        lines.append(f"# {field.encode_name} =" if value is None else f"{field.encode_name} = {_toml(value)}")
    return lines


def _description(section: type[msgspec.Struct], key: str) -> str:
    annotation = section.__annotations__.get(key)
    resolved = next(field.type for field in msgspec.structs.fields(section) if field.name == key)
    for meta in getattr(resolved, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return str(annotation)


def toml_key(name: str) -> str:
    """A key as TOML has it: bare where it can be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's; DEL, which JSON leaves bare, is one more."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _toml(value: Any) -> str:
    if isinstance(value, Duration | Size | Mode):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, GraphRetentionConfig):
        value = {key: item for key, item in msgspec.structs.asdict(value).items() if item is not None}
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return _quoted(value)
