"""A graph as the operator configured it, with its engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ergo_capture.engine.port import Engine
from ergo_capture.engine.scripted import FixedEngine
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.server.session.access import Access

if TYPE_CHECKING:
    from ergo_capture.adapter.binding import Binding
    from ergo_capture.adapter.egress import EgressConfig


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of which clients may open sessions."""

    name: str
    constraints: Constraints
    adapter_provenance: str
    runtime_provenance: str
    engine: Engine
    #: The channels that intents go to; None where it has none.
    egress: EgressConfig | None = None
    #: Who may open and resume its sessions.
    access: Access = field(default_factory=Access)
    #: How payloads become what the graph gets; None where they are captured as they were sent.
    binding: Binding | None = None

    @property
    def writable(self) -> tuple[str, ...]:
        """The context keys that effects of the graph may write; with any, episodes run one after the other."""
        return () if self.binding is None or self.binding.adapter is None else self.binding.adapter.writable

    def without_engine(self) -> Graph:
        """Return the graph for a session whose episodes run elsewhere: each is taken as completed."""
        return replace(self, engine=FixedEngine(), egress=None)
