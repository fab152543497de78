"""The context store: what the effects of a run have written, by key."""

from __future__ import annotations

from collections.abc import KeysView, Mapping
from typing import Any, Protocol

import msgspec

from ergo_capture.adapter.canonical import write_json
from ergo_capture.adapter.errors import CONTEXT_FULL, INVALID_EFFECT, AdapterError
from ergo_capture.adapter.manifest import ContextKey
from ergo_capture.kernel.effects import ActionEffect, Value

SET_CONTEXT = "set_context"


class Declares(Protocol):
    """The part of an adapter against which writes are checked."""

    @property
    def context(self) -> Mapping[str, ContextKey]:
        """The context keys by name."""


class ContextStore:
    """The values of a run by key (``ContextStore``); only ``set_context`` effects write it.

    Args:
        values: its initial content; None for an empty store.
        limit: bytes of JSON that keys and values may take; None for no limit.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, *, limit: int | None = None) -> None:
        self._values: dict[str, Any] = dict(values or {})
        self.limit = limit
        #: Bytes of JSON of each value.
        self._sizes = {key: len(write_json(value)) for key, value in self._values.items()}
        #: Bytes of JSON that keys and values take.
        self.size = sum(len(write_json(key)) + size for key, size in self._sizes.items())

    @classmethod
    def from_json(cls, text: bytes | str, *, limit: int | None = None) -> ContextStore:
        """Return the store that ``to_json`` wrote.

        Raises:
            ValueError: the text is not a JSON object.
        """
        return cls(msgspec.json.decode(text, type=dict[str, Any]), limit=limit)

    def to_json(self) -> bytes:
        """Return the store as canonical JSON, for a journal or a manifest."""
        return write_json(self._values)

    def snapshot(self) -> dict[str, Any]:
        """Return the values by key, sorted."""
        return {key: self._values[key] for key in sorted(self._values)}

    def get(self, key: str) -> Any:
        """Return a key's value; None if it has none."""
        return self._values.get(key)

    def keys(self) -> KeysView[str]:
        """Return the keys that have a value."""
        return self._values.keys()

    def held_by(self, payload: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of a decoded payload that have this store's value, as canonical JSON, sorted."""
        values = self._values
        shared = payload.keys() & values.keys()
        return tuple(sorted(key for key in shared if _is_same(payload[key], values[key])))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def apply(self, effect: ActionEffect, adapter: Declares) -> None:
        """Apply the writes of a ``set_context`` effect, in order; writes before an error are kept.

        Raises:
            AdapterError: INVALID_EFFECT if a key is not declared, not writable or of another type; CONTEXT_FULL if the
                store would grow beyond its limit.
        """
        if effect.kind != SET_CONTEXT:
            raise _invalid(f"no registered effect handler for kind '{effect.kind}'", effect.kind)
        for write in effect.writes:
            key, got = write.key, _type_of(write.value)
            declared = adapter.context.get(key)
            if declared is None:
                raise _invalid(f"effect '{effect.kind}' writes undeclared context key '{key}'", key)
            if not declared.writable:
                raise _invalid(f"effect '{effect.kind}' writes non-writable context key '{key}'", key)
            if declared.type != got:
                text = f"effect '{effect.kind}' key '{key}' has wrong type: expected {declared.type}, got {got}"
                raise _invalid(text, key)
            self._set(key, _json_of(write.value))

    def _set(self, key: str, value: Any) -> None:
        taken = len(write_json(value))
        before = self._sizes[key] if key in self._sizes else -len(write_json(key))
        size = self.size + taken - before
        if self.limit is not None and size > self.limit:
            raise AdapterError(
                CONTEXT_FULL,
                f"the context store would take {size:,} bytes with key '{key}'; its limit is {self.limit:,}",
                where=f"context key '{key}'",
                fix="raise limits.context_bytes, or let the graph write less",
            )
        self._values[key] = value
        self._sizes[key] = taken
        self.size = size

    def __repr__(self) -> str:
        return f"<ContextStore {len(self._values)} keys, {self.size} bytes>"


def _is_same(one: Any, other: Any) -> bool:
    # 1 and 1.0, or 0.0 and -0.0, are equal but have different texts.
    return one is other or (one == other and write_json(one) == write_json(other))


def _type_of(value: Value) -> str:
    name: str = next(name for name in Value.__struct_fields__ if getattr(value, name) is not msgspec.UNSET)
    return name


def _json_of(value: Value) -> Any:
    found = getattr(value, _type_of(value))
    return list(found) if isinstance(found, tuple) else found


def _invalid(message: str, key: str) -> AdapterError:
    return AdapterError(
        INVALID_EFFECT,
        f"effect application failed: {message}",
        where=f"effect on '{key}'",
        fix="declare the key as writable, with this type, in the adapter's context_keys, or change the graph",
    )
