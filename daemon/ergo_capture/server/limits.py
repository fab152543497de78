"""What clients may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost; sizes in bytes, times in seconds, a time of zero for none."""

    max_frame_bytes: int = 1 << 20
    max_events_per_frame: int = 10_000
    max_bad_frames: int = 5
    max_id_bytes: int = 1024
    max_name_bytes: int = 256
    max_label_bytes: int = 4096
    session_queue_bytes: int = 8 << 20
    #: Unsaid replies beyond which reading stops.
    reply_bytes: int = 256 << 10
    hello_timeout: float = 10.0
    frame_timeout: float = 30.0
    idle_timeout: float = 0.0
    write_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions there may be, and how much memory for what they hold; in all, and of one user."""

    max_sessions: int = 1024
    max_user_sessions: int = 512
    user_opens_per_second: int = 20
    queue_bytes: int = 64 << 20
    user_queue_bytes: int = 32 << 20
    ids_bytes: int = 1 << 30
    user_ids_bytes: int = 512 << 20
