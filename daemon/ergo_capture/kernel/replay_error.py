"""What is said where a bundle cannot be replayed."""

from __future__ import annotations

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, CapturedActionEffect


class ReplayError(ErgoCaptureError):
    """A bundle cannot be replayed, or an effect differs (``ergo_supervisor::replay::ReplayError``).

    ``kind`` is the reference's variant name; ``event_id`` and ``effect_index`` are set where it has them.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        event_id: str | None = None,
        effect_index: int | None = None,
        expected: CapturedActionEffect | None = None,
        actual: CapturedActionEffect | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, op="replay", hint=hint)
        self.kind = kind
        self.event_id = event_id
        self.effect_index = effect_index
        self.expected = expected
        self.actual = actual


def hash_mismatch(event_id: str) -> ReplayError:
    """A payload that its hash does not fit."""
    return ReplayError(
        "HashMismatch",
        f"payload hash mismatch for event '{event_id}'",
        event_id=event_id,
        hint="the payload or its hash was changed after the capture; compare with the journal or a backup",
    )


def unsupported_version(version: str) -> ReplayError:
    """A bundle of another format."""
    return ReplayError(
        "UnsupportedVersion",
        f"unsupported capture version '{version}'",
        hint=f"this release reads capture version '{CAPTURE_FORMAT_VERSION}'",
    )


def duplicate_event_id(event_id: str) -> ReplayError:
    """An id that occurs twice."""
    return ReplayError(
        "DuplicateEventId", f"duplicate event_id '{event_id}' in strict replay capture input", event_id=event_id
    )
