"""The manifest of an adapter: its declarations and their fingerprint."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import write_json
from ergo_capture.adapter.shapes import anything, boolean, option, sequence, string, struct


class ContextKey(msgspec.Struct, frozen=True):
    """A key of the context (``ContextKeySpec``)."""

    name: str
    #: ``Number``, ``Bool``, ``String`` or ``Series``.
    type: str
    required: bool
    #: Whether effects may write it; None is refused by a rule, not by the shape.
    writable: bool | None
    description: str | None


class PayloadKind(msgspec.Struct, frozen=True):
    """An event kind or an effect kind with the schema of its payload (``EventKindSpec``, ``EffectSpec``)."""

    name: str
    payload_schema: Any


class Accepts(msgspec.Struct, frozen=True):
    """The effects that the adapter takes (``AcceptsSpec``)."""

    effects: tuple[PayloadKind, ...]


class CaptureSpec(msgspec.Struct, frozen=True):
    """The capture that the adapter asks for (``CaptureSpec``); it selects nothing."""

    format_version: str
    fields: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True):
    """An adapter's manifest (``AdapterManifest``)."""

    kind: str
    id: str
    version: str
    runtime_compatibility: str
    context_keys: tuple[ContextKey, ...]
    event_kinds: tuple[PayloadKind, ...]
    accepts: Accepts | None
    capture: CaptureSpec

    @property
    def effects(self) -> tuple[PayloadKind, ...]:
        """The effects that the adapter accepts; empty if it declares none."""
        return () if self.accepts is None else self.accepts.effects

    def canonical(self) -> bytes:
        """Return the text that the fingerprint hashes: compact JSON of all known fields, keys sorted by bytes."""
        return write_json(msgspec.to_builtins(self))

    def provenance(self) -> str:
        """Return ``adapter:ID@VERSION;sha256:HEX``, as bundles name the adapter."""
        return f"adapter:{self.id}@{self.version};sha256:{hashlib.sha256(self.canonical()).hexdigest()}"


_EVENT_KIND: Final = struct("EventKindSpec", PayloadKind, {"name": string, "payload_schema": anything})
_EFFECT: Final = struct("EffectSpec", PayloadKind, {"name": string, "payload_schema": anything})

_CONTEXT_KEY: Final = struct(
    "ContextKeySpec",
    ContextKey,
    {
        "name": string,
        "type": string,
        "required": boolean,
        "writable": option(boolean),
        "description": option(string),
    },
    optional=frozenset({"writable", "description"}),
)

_MANIFEST: Final = struct(
    "AdapterManifest",
    Manifest,
    {
        "kind": string,
        "id": string,
        "version": string,
        "runtime_compatibility": string,
        "context_keys": sequence(_CONTEXT_KEY),
        "event_kinds": sequence(_EVENT_KIND),
        "accepts": option(struct("AcceptsSpec", Accepts, {"effects": sequence(_EFFECT)})),
        "capture": struct("CaptureSpec", CaptureSpec, {"format_version": string, "fields": sequence(string)}),
    },
    optional=frozenset({"accepts"}),
)


def read_manifest(value: Any) -> Manifest:
    """Return the manifest that a document's value stands for.

    Raises:
        ShapeError: a field is missing or of another type.
    """
    manifest: Manifest = _MANIFEST(value, ())
    return manifest
