"""A graph as the operator configured it, with its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ergo_capture.engine.port import Engine
from ergo_capture.engine.scripted import FixedEngine
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.payloads import Contract
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.protocol.capture import Code
from ergo_capture.server.session.access import Access
from ergo_capture.server.session.admission_queue import Check

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
    #: The users and groups that may open and resume its sessions.
    access: Access = field(default_factory=Access)
    #: How payloads are derived, as the journal keeps it; None if they are captured as they were sent.
    contract: Contract | None = None
    #: The contract, ready for use.
    binding: Binding | None = None

    @property
    def egress_provenance(self) -> str | None:
        """The provenance of its egress channels; None without channels."""
        return None if self.egress is None else self.egress.provenance()

    @property
    def writable(self) -> tuple[str, ...]:
        """The context keys that effects of the graph may write; if there are any, episodes run one after the other."""
        return () if self.binding is None or self.binding.adapter is None else self.binding.adapter.writable

    def derivation(self, contract: Contract | None, store: Mapping[str, Any] | None) -> Derivation | None:
        """Return how payloads are derived in a session that was opened with that contract; None where they are not.

        Args:
            contract: the session's contract; the configuration may name another one by now.
            store: the content of its context store.

        Raises:
            ErgoCaptureError: the adapter cannot be used here.
        """
        if contract is None:
            return None
        return Derivation(contract, store, binding=self.binding if contract == self.contract else None)

    def without_engine(self) -> Graph:
        """Return the graph for a session whose episodes run elsewhere: each is taken as completed."""
        return replace(self, engine=FixedEngine(), egress=None)


def check_of(binding: Binding) -> Check:
    """Return the check of event lines at admission: it rejects a line that is invalid for every value of the store."""
    from ergo_capture.adapter.binding import read_hosted_line, refusal_text  # noqa: PLC0415 - slow to import
    from ergo_capture.adapter.errors import AdapterError  # noqa: PLC0415 - likewise

    def check(line: bytes) -> tuple[Code, str, str] | None:
        try:
            binding.admit(read_hosted_line(line, binding.numbers))
        except AdapterError as error:
            return Code.SCHEMA_VIOLATION, refusal_text(error), error.fix
        except ValueError as error:
            return Code.INVALID_PAYLOAD, str(error), "send numbers within f64"
        return None

    return check
