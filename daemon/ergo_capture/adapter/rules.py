"""The rules that an adapter's manifest has to keep, in the reference's order and words.

ADP-15 and ADP-16 are not enforced by the reference. The first broken rule is the only one reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ergo_capture.adapter.manifest import Manifest
from ergo_capture.adapter.schemas import SchemaError, compile_schema, context_type, is_object_schema, required_names
from ergo_capture.adapter.shapes import Path, rust_debug
from ergo_capture.kernel.time import U64_MAX

#: The version of the reference's runtime that this program stands in for.
RUNTIME_VERSION: Final = "0.1.0-alpha.1"
_CAPTURE_FORMATS: Final = ("1",)
_TYPES: Final = ("Number", "Bool", "String", "Series")
_META_FIELDS: Final = ("meta.adapter_id", "meta.adapter_version", "meta.timestamp")
_ID: Final = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER: Final = r"(?:0|[1-9][0-9]*)"
_VERSION: Final = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})"
    rf"(?:-((?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
_SCHEMA_FIX: Final = "Provide a valid JSON Schema (Draft 2020-12)"


class BrokenRule(ValueError):
    """A rule that a manifest breaks.

    Args:
        rule: its name.
        summary: the reference's sentence.
        path: the place in the manifest; None for the whole manifest.
        fix: what to do.
    """

    def __init__(self, rule: str, summary: str, path: Path | None, fix: str) -> None:
        super().__init__(summary)
        self.rule = rule
        self.path = path
        self.fix = fix


def check_rules(manifest: Manifest) -> None:
    """Check a manifest.

    Raises:
        BrokenRule: the first rule that it breaks.
        AdapterError: jsonschema-rs is not installed.
    """
    for broken in _broken(manifest):
        raise broken


def _broken(m: Manifest) -> Iterator[BrokenRule]:
    """Yield the broken rules, in the reference's order; lazily, because the caller takes only the first one."""
    yield from _identity(m)
    yield from _context_keys(m)
    yield from _event_kinds(m)
    yield from _capture(m)
    yield from _writable_present(m)
    yield from _effects(m)
    yield from _writable_keys(m)
    yield from _materialised(m)
    yield from _required_fields(m)
    if m.capture.format_version not in _CAPTURE_FORMATS:
        yield BrokenRule(
            "COMP-3",
            f"Unsupported capture format version: '{m.capture.format_version}'",
            ("capture", "format_version"),
            "Use a supported capture format version: 1",
        )


def _identity(m: Manifest) -> Iterator[BrokenRule]:
    if not _ID.fullmatch(m.id):
        yield BrokenRule(
            "ADP-1",
            f"Invalid adapter ID: '{m.id}'",
            ("id",),
            "ID must start with lowercase letter, contain only lowercase letters, digits, and underscores (no hyphens)",
        )
    if _parse_version(m.version) is None:
        yield BrokenRule(
            "ADP-2",
            f"Invalid version: '{m.version}'",
            ("version",),
            "Version must be valid semver (e.g., '1.0.0')",
        )
    required = _parse_version(m.runtime_compatibility)
    if required is None:
        yield BrokenRule(
            "ADP-3",
            f"Invalid runtime_compatibility: '{m.runtime_compatibility}' (must be semver)",
            ("runtime_compatibility",),
            "runtime_compatibility must be valid semver (e.g., '0.1.0')",
        )
    elif _parse_version(RUNTIME_VERSION) < required:
        yield BrokenRule(
            "ADP-3",
            f"runtime {RUNTIME_VERSION} < required {m.runtime_compatibility}",
            ("runtime_compatibility",),
            f"upgrade runtime to {m.runtime_compatibility} or higher",
        )
    if not m.context_keys and not m.event_kinds:
        yield BrokenRule(
            "ADP-4", "Adapter provides no context keys or events", None, "Add at least one context_key or event_kind"
        )


def _context_keys(m: Manifest) -> Iterator[BrokenRule]:
    for index, name in _repeated(key.name for key in m.context_keys):
        yield BrokenRule(
            "ADP-5",
            f"Duplicate context key: '{name}'",
            ("context_keys", index, "name"),
            f"Rename '{name}' to a unique value",
        )
    for index, key in enumerate(m.context_keys):
        if key.type not in _TYPES:
            yield BrokenRule(
                "ADP-6",
                f"Context key '{key.name}' has invalid type '{key.type}'",
                ("context_keys", index, "type"),
                f"Type '{key.type}' is not valid; use Number, Bool, String, or Series",
            )


def _event_kinds(m: Manifest) -> Iterator[BrokenRule]:
    for index, name in _repeated(kind.name for kind in m.event_kinds):
        yield BrokenRule(
            "ADP-7",
            f"Duplicate event kind: '{name}'",
            ("event_kinds", index, "name"),
            f"Rename event kind '{name}' to a unique value",
        )
    for index, kind in enumerate(m.event_kinds):
        complaint = _schema_complaint(kind.payload_schema)
        if complaint is not None:
            yield BrokenRule(
                "ADP-8",
                f"Invalid payload schema for event '{kind.name}': {complaint}",
                ("event_kinds", index, "payload_schema"),
                _SCHEMA_FIX,
            )


def _capture(m: Manifest) -> Iterator[BrokenRule]:
    if not m.capture.format_version:
        yield BrokenRule(
            "ADP-9",
            "Capture format_version is empty or invalid",
            ("capture", "format_version"),
            "Set capture.format_version to a non-empty string",
        )
    known = {*_META_FIELDS, *(f"event.{kind.name}" for kind in m.event_kinds)}
    for index, field in enumerate(m.capture.fields):
        if field not in known:
            yield BrokenRule(
                "ADP-10",
                f"Capture field '{field}' is not in CaptureFieldSet",
                ("capture", "fields", index),
                f"'{field}' is not in CaptureFieldSet; valid selectors: event.<kind>, {', '.join(_META_FIELDS)}",
            )


def _writable_present(m: Manifest) -> Iterator[BrokenRule]:
    for index, key in enumerate(m.context_keys):
        if key.writable is None:
            yield BrokenRule(
                "ADP-11",
                f"Context key '{key.name}' is missing the 'writable' field",
                ("context_keys", index, "writable"),
                f"Add 'writable: true' or 'writable: false' to context key '{key.name}'",
            )


def _effects(m: Manifest) -> Iterator[BrokenRule]:
    for index, name in _repeated(effect.name for effect in m.effects):
        yield BrokenRule(
            "ADP-12",
            f"Duplicate effect name: '{name}'",
            ("accepts", "effects", index, "name"),
            f"Rename effect '{name}' to a unique value",
        )
    for index, effect in enumerate(m.effects):
        complaint = _schema_complaint(effect.payload_schema)
        if complaint is not None:
            yield BrokenRule(
                "ADP-13",
                f"Invalid payload schema for effect '{effect.name}': {complaint}",
                ("accepts", "effects", index, "payload_schema"),
                _SCHEMA_FIX,
            )


def _writable_keys(m: Manifest) -> Iterator[BrokenRule]:
    writable = [key.name for key in m.context_keys if key.writable]
    if writable and all(effect.name != "set_context" for effect in m.effects):
        yield BrokenRule(
            "ADP-14",
            f"Writable keys [{', '.join(map(rust_debug, writable))}] declared but adapter has no set_context effect",
            ("accepts", "effects"),
            "Add 'set_context' to accepts.effects when using writable keys",
        )
    for index, key in enumerate(m.context_keys):
        if key.writable and key.required:
            yield BrokenRule(
                "ADP-17",
                f"Writable key '{key.name}' cannot have required: true",
                ("context_keys", index),
                f"Set 'required: false' on writable key '{key.name}'",
            )


def _materialised(m: Manifest) -> Iterator[BrokenRule]:
    for index, kind in enumerate(m.event_kinds):
        schema = kind.payload_schema
        if not is_object_schema(schema):
            yield BrokenRule(
                "ADP-19",
                f"Event '{kind.name}' payload_schema must be an object schema for context materialization",
                ("event_kinds", index, "payload_schema"),
                "Set event payload_schema.type to 'object' and declare properties",
            )
        for field, property_schema in sorted(_properties(schema).items()):
            try:
                context_type(property_schema)
            except SchemaError as error:
                yield _unsupported(index, kind.name, field, str(error))


def _required_fields(m: Manifest) -> Iterator[BrokenRule]:
    types = {key.name: key.type for key in m.context_keys}
    for index, kind in enumerate(m.event_kinds):
        properties = _properties(kind.payload_schema)
        for field in required_names(kind.payload_schema):
            path = ("event_kinds", index, "payload_schema", "properties", field)
            if field not in properties:
                detail = "required field is not declared under payload_schema.properties"
                yield _unsupported(index, kind.name, field, detail)
            elif field not in types:
                yield BrokenRule(
                    "ADP-18",
                    f"Required event field '{kind.name}.{field}' is not declared in adapter context_keys",
                    path,
                    f"Add context key '{field}' to context_keys with matching type",
                )
            elif types[field] != (expected := context_type(properties[field])):
                yield BrokenRule(
                    "ADP-18",
                    f"Required event field '{kind.name}.{field}' type mismatch: context key is '{types[field]}', "
                    f"schema requires '{expected}'",
                    path,
                    f"Change context key '{field}' type to '{expected}'",
                )


def _unsupported(index: int, kind: str, field: str, detail: str) -> BrokenRule:
    return BrokenRule(
        "ADP-19",
        f"Event field '{kind}.{field}' uses unsupported materialization type: {detail}",
        ("event_kinds", index, "payload_schema", "properties", field),
        "Use field types that map to runtime values: number/integer, boolean, string, or array of numbers",
    )


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _schema_complaint(schema: Any) -> str | None:
    try:
        compile_schema(schema)
    except SchemaError as error:
        return str(error)
    return None


def _repeated(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        seen.add(name)


def _parse_version(text: str) -> Any:
    """Return a semantic version as something that is ordered as the reference orders versions; None for no version.

    A version with build metadata is above the same one without.
    """
    match = _VERSION.fullmatch(text)
    if match is None or any(len(part) > len(str(U64_MAX)) or int(part) > U64_MAX for part in match.groups()[:3]):
        return None
    *core, pre, build = match.groups()
    #: Numbers are below words; a longer number is the greater one, because there are no leading zeros.
    identifiers = [(0, len(part), part) if part.isdigit() else (1, part) for part in pre.split(".")] if pre else []
    return [int(part) for part in core], pre is None, identifiers, build is not None
