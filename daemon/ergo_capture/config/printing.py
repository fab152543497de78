"""Print a configuration as a TOML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import msgspec
from msgspec import Meta

from ergo_capture.config.graphs import EgressChannelConfig, EngineConfig, GraphConfig, GraphRetentionConfig
from ergo_capture.config.settings import Config
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig, TargetConfig
from ergo_capture.units import Duration, Mode, Size

#: Settings that are tables of their own.
_SUBTABLES: Final[Mapping[type, tuple[str, ...]]] = {
    GraphConfig: ("retention", "egress", "engine"),
    ShipConfig: ("announce", "targets"),
}
#: The name of the target that a commented file shows.
_EXAMPLE_TARGET: Final = "archive"


def to_toml(config: Config, *, comments: bool = False) -> str:
    """Return the configuration as a file with every setting; ``#key =`` stands for one that is not set.

    Args:
        config: the configuration.
        comments: whether to write descriptions too, examples for what is not set, and a table for each kind of engine.
            Settings at their defaults are then commented out, so that the defaults of a later version take their place.
    """
    lines = ["# Behind a # is what is not set: defaults, and examples."] if comments else []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if field.name == "graphs":
            for name, graph in value.items():
                lines += _graph(f"graphs.{toml_key(name)}", graph, comments=comments)
        else:
            lines += _table(field.name, type(value), value, comments=comments)
        if field.name == "ship":
            lines += _table("ship.announce", AnnounceConfig, value.announce, comments=comments)
            lines += _targets(value, comments=comments)
    return "\n".join(lines).lstrip("\n") + "\n"


def _graph(name: str, graph: GraphConfig, *, comments: bool) -> Iterator[str]:
    yield from _table(name, GraphConfig, graph, comments=comments)
    yield from _table(f"{name}.retention", GraphRetentionConfig, graph.retention, comments=comments)
    for channel, table in graph.egress.items():
        yield from _table(f"{name}.egress.{toml_key(channel)}", EgressChannelConfig, table, comments=comments)
    if comments and not graph.egress:
        yield from _table(f"{name}.egress.NAME", EgressChannelConfig, None, comments=comments)
    yield from _table(f"{name}.engine", type(graph.engine), graph.engine, comments=comments)
    for kind in get_args(EngineConfig) if comments else ():
        if not isinstance(graph.engine, kind):
            yield from _table(f"{name}.engine", kind, None, comments=comments)


def _targets(ship: ShipConfig, *, comments: bool) -> Iterator[str]:
    for name, target in ship.targets.items():
        yield from _table(f"ship.targets.{toml_key(name)}", TargetConfig, target, comments=comments)
    if comments and not ship.targets:
        yield from _table(f"ship.targets.{_EXAMPLE_TARGET}", TargetConfig, None, comments=True)


def _table(name: str, kind: type[msgspec.Struct], table: msgspec.Struct | None, *, comments: bool) -> Iterator[str]:
    """Yield the lines of a table; each setting is commented out if ``table`` is None."""
    off = "#" if table is None else ""
    yield ""
    if comments:
        yield f"# {(kind.__doc__ or '').strip()}"
    yield f"{off}[{name}]"
    tag = kind.__struct_config__
    if tag.tag_field is not None:
        if comments:
            yield f"# One of {', '.join(engine.__struct_config__.tag for engine in get_args(EngineConfig))}; see `ergo-capture help engines`."
        yield f"{off}{tag.tag_field} = {_toml(tag.tag)}"
    for field in msgspec.structs.fields(kind):
        if field.name in _SUBTABLES.get(kind, ()):
            continue
        default = None if field.required else field.default
        value = default if table is None else getattr(table, field.name)
        meta = next(meta for meta in field.type.__metadata__ if isinstance(meta, Meta))
        if comments:
            yield f"# {meta.description}"
        if value is not None:
            yield f"{'#' if comments and value == default else off}{field.name} = {_toml(value)}"
        elif comments and meta.examples:
            yield f"#{field.name} = {_toml(meta.examples[0])}"
        else:
            yield f"#{field.name} ="


def toml_key(name: str) -> str:
    """Return a name as a TOML key: bare if possible, else quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's too, except that JSON leaves DEL as it is.
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
    if isinstance(value, msgspec.Struct):
        value = {key: item for key, item in msgspec.structs.asdict(value).items() if item is not None}
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{toml_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return _quoted(value)
