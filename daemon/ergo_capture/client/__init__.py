"""A client of the daemon.

Example::

    async with CaptureClient(path) as client:
        await client.open("default")
        await client.send(ExternalEvent.mechanical("e1", ExternalEventKind.Command))
        closed = await client.close()
"""

from ergo_capture.client.connection import ClientError
from ergo_capture.client.in_flight import EventLine
from ergo_capture.client.session import CaptureClient, Note, Published, Reject, session_of, stream
from ergo_capture.protocol.capture import Acknowledged, LeftOver, Lost, Refused, event_line

__all__ = [
    "Acknowledged",
    "CaptureClient",
    "ClientError",
    "EventLine",
    "LeftOver",
    "Lost",
    "Note",
    "Published",
    "Refused",
    "Reject",
    "event_line",
    "session_of",
    "stream",
]
