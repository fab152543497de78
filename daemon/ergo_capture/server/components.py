"""The components of a running daemon, for status, control, reload and shutdown."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ergo_capture.config import Config, control_socket_beside
from ergo_capture.journal.wal import Journal
from ergo_capture.seal.keeper import SealKeeper
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.net.clients import Clients
from ergo_capture.server.ops.retention import Retention
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.server.ops.systemd import SystemdNotifier
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.shadow import ShadowVerifier


class Phase(StrEnum):
    """The phase of the daemon, as the status shows it."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Running:
    """The components that exist once the journal is recovered."""

    journal: Journal
    writer: Writer
    publisher: BundlePublisher
    registry: SessionRegistry
    shadow: ShadowVerifier


@dataclass(slots=True)
class Components:
    """The components of one daemon, and its phase."""

    #: The configuration in force; a reload replaces it.
    config: Config
    state: StateDirectory
    clients: Clients
    retention: Retention
    notifier: SystemdNotifier
    #: Seals finished bundles; None if no key is configured.
    seals: SealKeeper | None = None
    phase: Phase = Phase.STARTING
    #: The current step of the start-up, in one line; shown while the daemon starts.
    progress: str = "reading the journal"
    #: None until the journal is recovered.
    running: Running | None = None
    #: ``time.monotonic()`` of the start.
    started_at: float = field(default_factory=time.monotonic)
    #: Unix time of the start, taken once, so that setting the clock does not change it.
    start_time: float = field(default_factory=time.time)

    @property
    def socket_path(self) -> Path:
        """Path of the socket for clients."""
        return Path(self.config.socket.path)

    @property
    def control_path(self) -> Path:
        """Path of the control socket."""
        return Path(self.config.control.path or control_socket_beside(self.socket_path))
