"""A loaded adapter: it binds events, which are merged with the context store, validated and made canonical."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import Numbers, write_json
from ergo_capture.adapter.errors import (
    KEY_MISSING,
    MANIFEST_RULE,
    MANIFEST_SHAPE,
    MANIFEST_UNREADABLE,
    SCHEMA_VIOLATION,
    AdapterError,
    spell_path,
)
from ergo_capture.adapter.events import HostedEvent, read_hosted_event
from ergo_capture.adapter.manifest import ContextKey, Manifest, read_manifest
from ergo_capture.adapter.rules import BrokenRule, check_rules
from ergo_capture.adapter.schemas import PayloadSchema, Violation, sorted_keys
from ergo_capture.adapter.shapes import Path, ShapeError
from ergo_capture.adapter.store import ContextStore
from ergo_capture.adapter.yaml_reader import Document, YamlError, read_yaml
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.events import ExternalEvent


class Bound(msgspec.Struct, frozen=True):
    """An event as the graph gets it."""

    event: ExternalEvent
    #: The payload's keys that have the context store's value, sorted. A key that was sent with this value is included,
    #: so that the keys follow from payload and store.
    taken: tuple[str, ...]


class _Kind(msgspec.Struct, frozen=True):
    """A loaded event kind."""

    schema: PayloadSchema
    #: The properties that the store may hold a value for, sorted.
    mergeable: tuple[str, ...]


class Adapter:
    """A graph's contract (``AdapterProvides`` with its binder); make one with ``load_adapter``.

    Args:
        manifest: a manifest that keeps the rules.
        numbers: how the numbers of payloads are read.

    Raises:
        AdapterError: the packages that adapters need are not installed.
    """

    def __init__(self, manifest: Manifest, numbers: Numbers = "reference") -> None:
        self.manifest = manifest
        self.numbers: Numbers = numbers
        #: ``adapter:ID@VERSION;sha256:HEX``, as bundles name it.
        self.provenance = manifest.provenance()
        #: The context keys by name.
        self.context: Mapping[str, ContextKey] = {key.name: key for key in manifest.context_keys}
        #: The kinds of effect that it takes.
        self.effects: tuple[str, ...] = tuple(effect.name for effect in manifest.effects)
        self._kinds: dict[str, _Kind] = {}
        for kind in manifest.event_kinds:
            schema = PayloadSchema(kind.payload_schema)
            # Only writable keys can have a value in the store.
            mergeable = (name for name in schema.properties if name in self.context and self.context[name].writable)
            self._kinds[kind.name] = _Kind(schema, tuple(mergeable))

    @property
    def writable(self) -> tuple[str, ...]:
        """The context keys that effects may write, in the manifest's order."""
        return tuple(key.name for key in self.manifest.context_keys if key.writable)

    def accept(self, event_json: str | bytes, store: ContextStore) -> ExternalEvent:
        """Return an event as the graph gets it: merged with the store, validated, its payload canonical.

        Args:
            event_json: ``{"event_id", "kind", "at", "semantic_kind", "payload"}``, as in a driver's event frame.
            store: what the effects of the run have written so far.

        Raises:
            AdapterError: INVALID_EVENT if it is not an event, SCHEMA_VIOLATION if the adapter refuses it.
        """
        return self.bind(read_hosted_event(event_json, self.numbers), store).event

    def admit(self, event: HostedEvent) -> None:
        """Raise if an event is invalid for every content of the context store; used before the event's turn.

        The payload is validated too if the schema of its kind has no key that effects may write.

        Raises:
            AdapterError: SCHEMA_VIOLATION.
        """
        kind, payload = self._kind_and_payload(event)
        if not kind.mergeable:
            self._validate(event, kind, payload, ())

    def bind(self, event: HostedEvent, store: ContextStore) -> Bound:
        """Return an event as the graph gets it, and the keys that have the store's value.

        Raises:
            AdapterError: SCHEMA_VIOLATION.
        """
        kind, payload = self._kind_and_payload(event)
        taken = tuple(key for key in kind.mergeable if key in store and key not in payload)
        merged = {key: store.get(key) for key in taken} | payload if taken else payload
        self._validate(event, kind, merged, taken)
        try:
            bound = ExternalEvent.with_payload(event.event_id, event.kind, event.at, write_json(merged))
        except ValueError as error:
            raise _violation(event, _mismatch(event.semantic_kind, str(error)), "payload") from error
        return Bound(bound, store.held_by(merged) if len(store) else ())

    def check_captured(self, payload: dict[str, Any], store: ContextStore, semantic_kind: str | None = None) -> None:
        """Check that a captured payload is one that ``bind`` may have made.

        Args:
            payload: the decoded payload.
            store: the context store when the event was decided.
            semantic_kind: the event's; None if unknown: the payload then has to be valid for at least one kind.

        Raises:
            AdapterError: SCHEMA_VIOLATION, or KEY_MISSING if it lacks a key that the store holds.
        """
        names = tuple(self._kinds) if semantic_kind is None else (semantic_kind,)
        refusals: list[AdapterError] = []
        missing: AdapterError | None = None
        for name in names:
            kind = self._kinds.get(name)
            if kind is None:
                raise self._kind_violation(f"unknown semantic event kind '{name}'")
            if not kind.schema.takes(payload):
                refusals.append(_of_schema(name, kind.schema.violation(sorted_keys(payload))))
            elif (key := next((key for key in kind.mergeable if key in store and key not in payload), None)) is None:
                return
            else:
                missing = missing or AdapterError(
                    KEY_MISSING,
                    f"the payload has no '{key}', which the context store holds and the schema of '{name}' names",
                    where=spell_path((key,)),
                    fix="compare the capture with a backup or the journal: the host adds such a key",
                )
        if missing is not None or len(names) == 1:
            raise missing or refusals[0]
        reasons = "; ".join(refusal.message.partition(": ")[2] for refusal in refusals) or "it has none"
        raise AdapterError(
            SCHEMA_VIOLATION, f"no event kind of the adapter takes the payload: {reasons}", where="$", fix=_CAPTURED
        )

    def _kind_and_payload(self, event: HostedEvent) -> tuple[_Kind, dict[str, Any]]:
        payload = event.payload
        if payload is not None and not isinstance(payload, dict):
            raise _violation(event, "payload must be a JSON object", "type")
        if event.semantic_kind is None:
            raise self._kind_violation("semantic_kind is required in adapter-bound mode")
        if payload is None:
            raise _violation(event, "payload is required in adapter-bound mode", "required")
        kind = self._kinds.get(event.semantic_kind)
        if kind is None:
            raise self._kind_violation(f"unknown semantic event kind '{event.semantic_kind}'")
        return kind, payload

    def _kind_violation(self, message: str) -> AdapterError:
        known = ", ".join(f"'{name}'" for name in self._kinds) or "none"
        return AdapterError(
            SCHEMA_VIOLATION,
            message,
            where="semantic_kind",
            fix=f"name one of the adapter's event kinds: {known}",
            rule="semantic_kind",
        )

    def _validate(self, event: HostedEvent, kind: _Kind, payload: dict[str, Any], taken: tuple[str, ...]) -> None:
        if kind.schema.takes(payload):
            return
        violation: Violation = kind.schema.violation(sorted_keys(payload))
        message = _mismatch(event.semantic_kind, violation.message)
        raise _violation(event, message, violation.keyword, violation.path, taken)

    def __repr__(self) -> str:
        return f"<Adapter {self.manifest.id!r} {self.manifest.version}, {len(self._kinds)} event kinds>"


def _mismatch(semantic_kind: str | None, detail: str) -> str:
    return (
        "semantic event binding failed: payload does not match schema for semantic event kind "
        f"'{semantic_kind}': {detail}"
    )


_CAPTURED: Final = "compare the capture with a backup or the journal, or the adapter with the one that it was made with"


def _of_schema(semantic_kind: str, violation: Violation) -> AdapterError:
    return AdapterError(
        SCHEMA_VIOLATION,
        _mismatch(semantic_kind, violation.message),
        where=spell_path(violation.path),
        fix=_CAPTURED,
        rule=violation.keyword,
    )


def _violation(
    event: HostedEvent, message: str, rule: str, path: Path = (), taken: tuple[str, ...] = ()
) -> AdapterError:
    if path and path[0] in taken:
        fix = f"send '{path[0]}' with the event: the value in the context store, which graph effects wrote, is refused"
    else:
        fix = f"send a payload that the adapter's schema of '{event.semantic_kind}' takes, or change the schema"
    return AdapterError(SCHEMA_VIOLATION, message, where=spell_path(path), fix=fix, rule=rule)


def load_adapter(text: str | bytes, *, numbers: Numbers = "reference", name: str = "adapter.yaml") -> Adapter:
    """Return the adapter that a manifest in YAML describes.

    Args:
        text: the manifest.
        numbers: ``reference`` reads the numbers of payloads as the reference does, ``exact`` reads the nearest double.
        name: the manifest's name in messages.

    Raises:
        AdapterError: MANIFEST_UNREADABLE, MANIFEST_SHAPE or MANIFEST_RULE if the reference refuses it too;
            EXTRA_MISSING if the packages that adapters need are not installed.
    """
    try:
        document = read_yaml(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise AdapterError(
            MANIFEST_UNREADABLE,
            f"read adapter manifest '{name}': stream did not contain valid UTF-8",
            where=f"line {line} column {column}",
            fix="save the manifest as UTF-8",
            line=line,
            column=column,
            exit_code=ExitCode.CONFIG,
        ) from error
    except YamlError as error:
        raise AdapterError(
            MANIFEST_UNREADABLE,
            f"parse adapter manifest '{name}': {error}",
            where="the manifest" if error.line is None else f"line {error.line} column {error.column}",
            fix="write one YAML 1.2 document without tags, with integers of 64 bits",
            line=error.line,
            column=error.column,
            exit_code=ExitCode.CONFIG,
        ) from error
    try:
        manifest = read_manifest(document.value)
        check_rules(manifest)
    except ShapeError as error:
        fix = (
            "give the field that the message names, with the type that it names"
            if document.value is not None
            else "write the manifest: the file holds nothing"
        )
        text = f"decode adapter manifest '{name}': {error}"
        raise _refused(MANIFEST_SHAPE, text, document, error.path, fix) from error
    except BrokenRule as error:
        stage = "composition" if error.rule.startswith("COMP") else "manifest validation"
        text = f"adapter {stage} failed: {error} ({error.rule})"
        raise _refused(MANIFEST_RULE, text, document, error.path or (), error.fix, error.rule) from error
    return Adapter(manifest, numbers)


def _refused(
    code: str, message: str, document: Document, path: Path, fix: str, rule: str | None = None
) -> AdapterError:
    line, column = document.mark_of(path) or (1, 1)
    where = f"{spell_path(path)}, line {line} column {column}"
    return AdapterError(
        code, message, where=where, fix=fix, rule=rule, line=line, column=column, exit_code=ExitCode.CONFIG
    )
