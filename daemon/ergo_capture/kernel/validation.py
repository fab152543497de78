"""The soundness of a bundle: its version, its hashes, its ids, its provenances."""

from __future__ import annotations

from typing import Any, Protocol

from ergo_capture.kernel.events import EventLike, ExternalEventPayloadError
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, NO_ADAPTER_PROVENANCE, CaptureBundle
from ergo_capture.kernel.replay_error import ReplayError, duplicate_event_id, hash_mismatch, unsupported_version


def validate_bundle(bundle: CaptureBundle) -> None:
    """Check the version and every payload hash (``replay::validate_bundle``).

    Raises:
        ReplayError: UnsupportedVersion or HashMismatch.
    """
    if bundle.capture_version != CAPTURE_FORMAT_VERSION:
        raise unsupported_version(bundle.capture_version)
    for record in bundle.events:
        if not record.validate_hash():
            raise hash_mismatch(record.event_id)


def validate_bundle_strict(
    bundle: CaptureBundle, *, expected_adapter_provenance: str, expected_runtime_provenance: str
) -> None:
    """Check also that event ids are unique and provenances as expected (``replay::validate_bundle_strict``).

    Raises:
        ReplayError: as ``validate_bundle``, DuplicateEventId, or a provenance that differs.
    """
    validate_bundle(bundle)
    seen: set[str] = set()
    for record in bundle.events:
        if record.event_id in seen:
            raise duplicate_event_id(record.event_id)
        seen.add(record.event_id)
    check_provenance(bundle, expected_adapter_provenance, expected_runtime_provenance)


def rehydrate(record: Any) -> EventLike:
    """The event of a captured record, checked.

    Raises:
        ReplayError: HashMismatch or InvalidPayload.
    """
    if not record.validate_hash():
        raise hash_mismatch(record.event_id)
    try:
        event: EventLike = record.rehydrate()
    except ExternalEventPayloadError as error:
        raise ReplayError(
            "InvalidPayload", f"invalid payload for event '{record.event_id}': {error}", event_id=record.event_id
        ) from error
    return event


class Provenanced(Protocol):
    """A bundle, or a stream of one, as far as provenance goes."""

    @property
    def adapter_provenance(self) -> str:
        """What the adapter was."""

    @property
    def runtime_provenance(self) -> str:
        """What the engine was."""


def check_provenance(bundle: Provenanced, adapter: str, runtime: str) -> None:
    """Check that a bundle was made by this adapter and this engine.

    Raises:
        ReplayError: one of them is another, or is there where none should be.
    """
    captured = bundle.adapter_provenance
    if captured == NO_ADAPTER_PROVENANCE:
        if adapter != NO_ADAPTER_PROVENANCE:
            raise ReplayError(
                "UnexpectedAdapterProvidedForNoAdapterCapture",
                "bundle provenance is 'none'; adapter must not be provided",
            )
    elif adapter == NO_ADAPTER_PROVENANCE:
        raise ReplayError("AdapterRequiredForProvenancedCapture", "bundle is adapter-provenanced; adapter is required")
    elif adapter != captured:
        raise ReplayError(
            "AdapterProvenanceMismatch",
            f"adapter provenance mismatch: expected '{captured}', got '{adapter}'",
        )
    if runtime != bundle.runtime_provenance:
        raise ReplayError(
            "RuntimeProvenanceMismatch",
            f"runtime provenance mismatch: expected '{runtime}', got '{bundle.runtime_provenance}'",
        )
