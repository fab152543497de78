"""A configuration that is printed: every setting of every kind is there, and reads back as it was."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
import pytest

from ergo_capture.config import Config, GraphConfig, GraphRetentionConfig, parse, to_toml
from ergo_capture.config.graphs import EgressChannelConfig, EgressRouteConfig, EngineConfig
from ergo_capture.config.settings import RetentionConfig
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig, TargetConfig
from ergo_capture.units import Duration, Mode, Size

ENGINES = get_args(EngineConfig)
#: Settings whose values depend on others.
TESTED_BELOW = {("ship", "announce"), ("ship", "targets"), ("retention", "shipped_to")}


def other_value(kind: Any, default: Any) -> Any:
    """Return a valid value of a setting's type that is not its default."""
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = next(each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
    if isinstance(kind, msgspec.inspect.Metadata):
        return other_value(kind.type, default)
    if isinstance(kind, msgspec.inspect.CustomType):
        return {Duration: Duration(90_061_000_000_001), Size: Size(3 << 30), Mode: Mode(0o600)}[kind.cls]
    if isinstance(kind, msgspec.inspect.LiteralType):
        return next(value for value in kind.values if value != default)
    if isinstance(kind, msgspec.inspect.IntType):
        return (default or 0) + 7
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return ("one", 'two "quoted" \\ \x7f ü')
    if isinstance(kind, msgspec.inspect.AnyType):
        return {"Failed": "RuntimeError"}
    assert isinstance(kind, msgspec.inspect.StrType), kind
    return "/a b/'c'.prom"


def required_values(table: type[msgspec.Struct]) -> dict[str, Any]:
    """Return values for a table's settings that have no default."""
    return {field.name: other_value(field.type, None) for field in fields(table) if field.required}


def fields(table: type[msgspec.Struct]) -> tuple[msgspec.inspect.Field, ...]:
    """Return the settings of a table, with their types."""
    info = msgspec.inspect.type_info(table)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def settings() -> list[Any]:
    """Return each setting of each table as (name for the report, configuration with another value of it)."""
    found = []
    for section in fields(Config):
        if section.name == "graphs":
            continue
        table = type(getattr(Config(), section.name))
        for field in fields(table):
            if (section.name, field.name) in TESTED_BELOW:
                continue
            value = table.MAXIMUM.get(field.name, other_value(field.type, field.default))
            changed = table(**{field.name: value})
            found.append(
                pytest.param(
                    msgspec.structs.replace(Config(), **{section.name: changed}), id=f"{section.name}.{field.name}"
                )
            )
    special = {"servers": ("tls://a:4222", "nats://[::1]"), "subject": 'a."b".ü'}
    for field in fields(AnnounceConfig):
        value = special.get(field.name, other_value(field.type, field.default))
        announce = ShipConfig(announce=AnnounceConfig(**{field.name: value}))
        found.append(pytest.param(msgspec.structs.replace(Config(), ship=announce), id=f"ship.announce.{field.name}"))
    for field in fields(TargetConfig):
        value = "gs://b" if field.name == "url" else other_value(field.type, field.default)
        values: dict[str, Any] = {"url": "s3://b/p", field.name: value}
        target = TargetConfig(**values)
        shipping = {"ship": ShipConfig(targets={"a": target}), "retention": RetentionConfig(shipped_to=("a",))}
        found.append(pytest.param(msgspec.structs.replace(Config(), **shipping), id=f"ship.targets.{field.name}"))
    graphs = [
        (f"graphs.{field.name}", GraphConfig(**{field.name: other_value(field.type, field.default)}))
        for field in fields(GraphConfig)
        if field.name not in ("retention", "egress", "engine")
    ]
    channel = EgressChannelConfig(("a", "b c"), {"k": EgressRouteConfig(), "k 2": EgressRouteConfig(Duration(1))})
    graphs.append(("graphs.egress", GraphConfig(egress={"one": channel, "t.wo": channel})))
    graphs += [
        (
            f"graphs.retention.{field.name}",
            GraphConfig(retention=GraphRetentionConfig(**{field.name: other_value(field.type, None)})),
        )
        for field in fields(GraphRetentionConfig)
    ]
    for engine in ENGINES:
        for field in fields(engine):
            values = {**required_values(engine), field.name: other_value(field.type, field.default)}
            graphs.append(
                (f"graphs.engine.{engine.__struct_config__.tag}.{field.name}", GraphConfig(engine=engine(**values)))
            )
    return found + [
        pytest.param(msgspec.structs.replace(Config(), graphs={"a b": graph}), id=name) for name, graph in graphs
    ]


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("config", settings())
def test_every_setting_reads_back_as_it_was_printed(config: Config, comments: bool) -> None:
    """One configuration for each setting of each table and each kind of engine."""
    assert config != Config()
    assert parse(to_toml(config, comments=comments), "printed") == config


@pytest.mark.parametrize("engine", ENGINES)
def test_every_setting_of_an_engine_is_printed(engine: Any) -> None:
    """``config show`` has its kind and all its settings, those at their defaults included."""
    graph = GraphConfig(engine=engine(**required_values(engine)))
    printed = to_toml(msgspec.structs.replace(Config(), graphs={"a": graph}))
    table = printed.partition("[graphs.a.engine]\n")[2]
    assert re.findall(r"^(\w+) = ", table, re.MULTILINE) == ["kind", *engine.__struct_fields__]
