"""A client of the daemon.

async with CaptureClient(path) as client:
await client.open("default")
await client.send(ExternalEvent.mechanical("e1", ExternalEventKind.Command))
closed = await client.close()
"""

from ergo_capture.client.frames import ClientError, Published, Reject, event_line
from ergo_capture.client.session import CaptureClient
from ergo_capture.client.streaming import session_of, stream

__all__ = ["CaptureClient", "ClientError", "Published", "Reject", "event_line", "session_of", "stream"]
