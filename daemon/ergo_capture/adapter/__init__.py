"""The contract between a graph and the world around it: adapters, the context store, and the reference's host, pure.

Nothing here reads a clock, a file or a socket. Adapters need two optional packages, which are imported when the first
adapter is read: ``pip install 'ergo-capture[adapter]'``.
"""

from ergo_capture.adapter.contract import Adapter, Bound, load_adapter
from ergo_capture.adapter.errors import AdapterError
from ergo_capture.adapter.events import HostedEvent
from ergo_capture.adapter.simulate import Case, read_case, simulate
from ergo_capture.adapter.store import ContextStore

__all__ = [
    "Adapter",
    "AdapterError",
    "Bound",
    "Case",
    "ContextStore",
    "HostedEvent",
    "load_adapter",
    "read_case",
    "simulate",
]
