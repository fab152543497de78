"""A graph as the operator configured it, with its engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from ergo_capture.engine.port import Engine
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.server.session.access import Access


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of which clients may open sessions."""

    name: str
    constraints: Constraints
    adapter_provenance: str
    runtime_provenance: str
    engine: Engine
    #: Who may open and resume its sessions.
    access: Access = field(default_factory=Access)
