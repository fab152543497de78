"""The daemon put together: what starts in which order, and what stops in which.

Owns: the composition root, start-up, sessions by id, shutdown.
Not here: what any of the parts does; each is in the file of its name.

Start-up: lock the state directory -> sweep temporaries -> scan and recover the journal -> bind the socket ->
ready. Shutdown: stop accepting and reading -> decide and commit everything accepted -> publish every open
session as it is -> seal the journal -> unlock. A session that is open when the daemon stops stays open in
the journal: its client may resume it after the next start, within ``session.linger``.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup, UNIXSocketStream

from ergo_capture import telemetry
from ergo_capture.capture.atomic import sweep_temporaries
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.body import Peer, SessionDescription, encode_body
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.journal import Journal
from ergo_capture.journal.recovery import RecoveredSession, recover
from ergo_capture.server import protocol
from ergo_capture.server.composition import graphs_of, limits_of, rotation_of
from ergo_capture.server.connection import Connection, ConnectionLimits
from ergo_capture.server.graph import Graph
from ergo_capture.server.listener import Listener, bind, unlink_if_ours
from ergo_capture.server.protocol import Code, Open, ProtocolError
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.session import Session, utc_now
from ergo_capture.server.submission import append
from ergo_capture.server.writer import Writer
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM
