"""An event and its decision, as commands print them: a line for people, or a JSON object.

Owns: both forms.
Not here: which are printed (``cat.py``, ``tail.py``), words for a decision (``kernel/explanation.py``).
"""

from __future__ import annotations

from typing import Final

import msgspec

from ergo_capture.kernel.explanation import in_a_line, in_seconds, plain, readable
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord

#: Characters of a payload that are shown.
_SHOWN: Final = 60


def for_people(
    index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None, session: str | None = None
) -> str:
    """One line; it begins with the session where one is given."""
    payload = event.payload.decode()
    shown = payload if len(payload) <= _SHOWN else payload[: _SHOWN - 3] + "..."
    decided = "not decided" if record is None else in_a_line(record).partition("  ")[2]
    line = f"{index}  {in_seconds(event.event_time)}  {event.kind.value}  {event.event_id!r}  {decided}  {shown}"
    return (line if session is None else f"{readable(session)}  {line}").rstrip()


def as_json(
    index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None, session: str | None = None
) -> str:
    """One JSON object, on one line; it bears the session where one is given."""
    item = {
        "index": index,
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": plain(event.event_time),
        "payload": msgspec.Raw(event.payload or b"null"),
        "decision": None if record is None else plain(record),
    }
    return msgspec.json.encode(item if session is None else {"session": session} | item).decode()
