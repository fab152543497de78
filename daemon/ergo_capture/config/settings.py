"""The configuration: every setting, its default, and its description; those of graphs and of shipping are beside it.

``config/ergo-capture.toml`` is generated from these structs; the descriptions are its comments.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ergo_capture.config.graphs import GraphConfig
from ergo_capture.config.shipping import ShipConfig
from ergo_capture.config.tables import Name, Table, doc
from ergo_capture.units import Duration, Mode, Size


class SocketConfig(Table, frozen=True):
    """The socket that clients connect to."""

    PATHS = ("path",)

    path: Annotated[
        str, doc("Path of the socket; empty for the default (/run/ergo-capture/capture.sock, or the user's).")
    ] = ""
    mode: Annotated[Mode, doc("Permissions of the socket.")] = Mode(0o660)
    group: Annotated[str, doc("Group that owns the socket; empty for the daemon's own.")] = ""
    backlog: Annotated[int, doc("Most connections that may wait to be accepted.", ge=1, le=65_535)] = 128


class AccessConfig(Table, frozen=True):
    """Users and groups that may connect, within the socket's mode; if both are empty, all may. Root always may."""

    users: Annotated[tuple[Name, ...], doc("Users, by name or number.")] = ()
    groups: Annotated[tuple[Name, ...], doc("Groups whose members may connect, by name or number.")] = ()


class ControlConfig(Table, frozen=True):
    """The socket of `ergo-capture status`, `top`, `metrics`, `reload` and `tap`, for the daemon's user and root."""

    PATHS = ("path",)

    path: Annotated[str, doc("Path of the control socket; empty for control.sock beside capture.sock.")] = ""


class MetricsConfig(Table, frozen=True):
    """A file of metrics for Prometheus; `ergo-capture metrics` prints the same."""

    # Writing the file without pause would slow down the journal on the same disk.
    MINIMUM = {"interval": Duration(1_000_000_000)}
    PATHS = ("textfile",)

    textfile: Annotated[str, doc("A file ending in .prom for node_exporter's textfile collector; empty for none.")] = ""
    interval: Annotated[Duration, doc("How often the file is written.")] = Duration(15_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("`textfile` must end in .prom; node_exporter reads nothing else")


class StateConfig(Table, frozen=True):
    """The directory of the journal and the bundles."""

    PATHS = ("directory",)

    directory: Annotated[str, doc("State directory; empty for the default (/var/lib/ergo-capture, or the user's).")] = (
        ""
    )


class JournalConfig(Table, frozen=True):
    """The journal, which makes events and decisions durable."""

    # A queue without room would block every client for ever.
    MINIMUM = {"segment_bytes": Size(4 << 10), "queue_bytes": Size(4 << 10)}

    segment_bytes: Annotated[Size, doc("Size of one segment file, which is allocated in advance.")] = Size(64 << 20)
    decision_delay: Annotated[
        Duration, doc("Longest time that decisions wait for events to be synced with; 0s for no wait.")
    ] = Duration(2_000_000)
    queue_bytes: Annotated[
        Size, doc("Most bytes of events, of all clients, that wait to be written; above it no client is read.")
    ] = Size(64 << 20)
    queue_frames: Annotated[
        int, doc("Most chunks of events that wait to be written; above it no client is read.", ge=1)
    ] = 65_536


class SessionConfig(Table, frozen=True):
    """Sessions whose client has disconnected, and sessions after a crash."""

    linger: Annotated[
        Duration, doc("How long a session waits for its client to resume it before it is closed as interrupted.")
    ] = Duration(30_000_000_000)
    in_doubt: Annotated[
        Literal["reinvoke", "interrupt"],
        doc(
            "What to do after a crash with an event whose episode may have run: run it (again), or record it as "
            "aborted with an interruption."
        ),
    ] = "reinvoke"


class RotationConfig(Table, frozen=True):
    """When a session's bundle ends and its next one begins; 0 turns a limit off."""

    max_events: Annotated[int, doc("Most events in one bundle.", ge=0)] = 1_000_000
    max_bytes: Annotated[Size, doc("Most bytes of events in one bundle, as received.")] = Size(1 << 30)
    max_age: Annotated[Duration, doc("Longest time from the beginning of a bundle to its end.")] = Duration(0)
    max_journal_bytes: Annotated[
        Size,
        doc(
            "Most bytes of journal, of all sessions together, from the beginning of a bundle to its end: an idle session "
            "keeps no more of it."
        ),
    ] = Size(2 << 30)
    force_after: Annotated[
        Duration, doc("How long to wait for a moment when no episode is deferred before the bundle is ended anyway.")
    ] = Duration(60_000_000_000)


class SnapshotConfig(Table, frozen=True):
    """Bundles of sessions that are still open."""

    interval: Annotated[Duration, doc("How often to publish each open session; 0s for never.")] = Duration(0)


class LimitsConfig(Table, frozen=True):
    """Limits for clients; 0s turns a time-out off."""

    MINIMUM = {
        "max_frame_bytes": Size(256),
        "session_queue_bytes": Size(1 << 10),
        "reply_bytes": Size(1 << 10),
        "held_bytes": Size(64 << 10),
    }
    #: A frame of the journal and a manifest have to hold it.
    MAXIMUM = {"context_bytes": Size(16 << 20)}

    max_clients: Annotated[int, doc("Most clients connected at once.", ge=1)] = 256
    max_user_clients: Annotated[int, doc("Most clients of one user connected at once.", ge=1)] = 128
    max_sessions: Annotated[int, doc("Most sessions open at once.", ge=1)] = 1024
    max_user_sessions: Annotated[int, doc("Most sessions of one user open at once.", ge=1)] = 512
    user_opens_per_second: Annotated[
        int,
        doc(
            "New sessions of one user in a second, on average; five seconds' worth of them at once after a pause. "
            "Further ones wait for their turn. 0 turns the limit off.",
            ge=0,
        ),
    ] = 20
    max_frame_bytes: Annotated[Size, doc("Longest line that a client may send.")] = Size(1 << 20)
    max_events_per_frame: Annotated[int, doc("Most events in one `events` frame.", ge=1)] = 10_000
    max_bad_frames: Annotated[int, doc("Invalid lines from one client before its connection is closed.", ge=1)] = 5
    max_id_bytes: Annotated[int, doc("Longest event id, in UTF-8 bytes.", ge=1)] = 1024
    max_name_bytes: Annotated[
        int, doc("Longest name of a client, graph or session in a request, in UTF-8 bytes.", ge=1)
    ] = 256
    max_label_bytes: Annotated[int, doc("Most bytes of all labels of a session together.", ge=0)] = 4096
    session_queue_bytes: Annotated[
        Size, doc("Most bytes of one session's events that wait to be decided; above it its client is not read.")
    ] = Size(8 << 20)
    queue_bytes: Annotated[
        Size, doc("Most bytes of events, of all clients, that wait to be decided; above it no client is read.")
    ] = Size(64 << 20)
    user_queue_bytes: Annotated[Size, doc("The same for the clients of one user.")] = Size(32 << 20)
    ids_bytes: Annotated[
        Size,
        doc(
            "Memory for the event ids of open sessions (120 bytes and its length for each) and for deferred episodes "
            "(300 bytes for each, and its payload if an engine waits for it); above it no session takes more events."
        ),
    ] = Size(1 << 30)
    user_ids_bytes: Annotated[Size, doc("The same for the sessions of one user.")] = Size(512 << 20)
    max_egress_sessions: Annotated[
        int, doc("Most sessions open at once that have egress channels, which are processes of each session.", ge=1)
    ] = 64
    context_bytes: Annotated[
        Size,
        doc("Most bytes of JSON that one session's context store may take; beyond it the session is interrupted."),
    ] = Size(1 << 20)
    reply_bytes: Annotated[
        Size, doc("Most bytes of replies that wait for one client to read them; above it the client is not read.")
    ] = Size(256 << 10)
    held_bytes: Annotated[
        Size,
        doc(
            "Memory for incomplete lines and unread replies of all clients; above it the client that holds most of it "
            "is disconnected."
        ),
    ] = Size(32 << 20)
    hello_timeout: Annotated[Duration, doc("Time to say hello and open a session.")] = Duration(10_000_000_000)
    frame_timeout: Annotated[Duration, doc("Time to complete a line.")] = Duration(30_000_000_000)
    idle_timeout: Annotated[Duration, doc("Time that a client with a session may send nothing.")] = Duration(0)
    write_timeout: Annotated[Duration, doc("Time that a client may leave replies unread.")] = Duration(30_000_000_000)


class BundleConfig(Table, frozen=True):
    """Bundle files."""

    style: Annotated[Literal["compact", "pretty"], doc("Layout of the JSON.")] = "compact"
    compress: Annotated[Literal["none", "zstd"], doc("Compression of the files; every command reads both kinds.")] = (
        "none"
    )
    compose: Annotated[
        Literal["at the end", "while running"],
        doc(
            "When the bundle of a large session is composed: when the session ends, or while it runs, so that its end "
            "takes a moment; the bytes are the same."
        ),
    ] = "while running"
    running_bytes: Annotated[
        Size, doc("Most bytes of the temporary files of bundles that are composed while their sessions run.")
    ] = Size(4 << 30)


class VerifyConfig(Table, frozen=True):
    """Shadow verification: finished bundles are verified once more, in a process at low priority."""

    after_publish: Annotated[
        Literal["when idle", "always", "never"],
        doc("Whether a bundle is verified after it was published: only while a processor is idle, always, or never."),
    ] = "when idle"
    keep_bytes: Annotated[
        Size, doc("Most bytes of journal that are kept until the bundles composed from it have been verified.")
    ] = Size(256 << 20)


class RetentionConfig(Table, frozen=True):
    """Which finished bundles are deleted, the oldest first; 0 turns a limit off."""

    max_age: Annotated[Duration, doc("Time from a bundle's end to its deletion.")] = Duration(0)
    max_bytes: Annotated[
        Size, doc("Most bytes of all bundles of one graph; its newest bundle is kept, whatever its size.")
    ] = Size(0)
    max_bundles: Annotated[int, doc("Most bundles of one graph.", ge=0)] = 0
    keep_free_bytes: Annotated[
        Size,
        doc("Free space to keep on the disk; deletes the oldest bundles of any graph, except each graph's newest."),
    ] = Size(0)
    interval: Annotated[
        Duration, doc("How often to check, besides after each bundle that is published; 0s for only then.")
    ] = Duration(600_000_000_000)
    shipped_to: Annotated[
        tuple[str, ...],
        doc("Targets of [ship] that must hold a bundle before it is deleted; see `ergo-capture help ship`."),
    ] = ()
    give_up_after: Annotated[
        Duration,
        doc("Time from a bundle's end after which it may be deleted though it was not shipped; 0s for never."),
    ] = Duration(0)


class SealConfig(Table, frozen=True):
    """Signatures that make a chain of all finished bundles, in the order of publication."""

    key: Annotated[
        str,
        doc(
            "The key that signs: a name in $CREDENTIALS_DIRECTORY, or a path; empty for no seals. See `ergo-capture help "
            "seal`."
        ),
    ] = ""


class ShutdownConfig(Table, frozen=True):
    """The orderly stop of the daemon."""

    drain: Annotated[Duration, doc("Longest time to decide, commit and publish what was accepted.")] = Duration(
        60_000_000_000
    )


class LogConfig(Table, frozen=True):
    """The daemon's log, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], doc("The least important lines shown.")] = "info"
    format: Annotated[
        Literal["auto", "json", "console", "journald"],
        doc(
            "auto is journald (JSON with priorities) if standard error is systemd's journal, console on a terminal, else "
            "json."
        ),
    ] = "auto"
    burst: Annotated[
        int, doc("Most lines of one event name in one window; further ones are only counted. 0 for no limit.", ge=0)
    ] = 100
    window: Annotated[Duration, doc("Length of a window.")] = Duration(10_000_000_000)


class Config(Table, frozen=True):
    """The whole configuration."""

    socket: SocketConfig = SocketConfig()
    access: AccessConfig = AccessConfig()
    control: ControlConfig = ControlConfig()
    state: StateConfig = StateConfig()
    journal: JournalConfig = JournalConfig()
    session: SessionConfig = SessionConfig()
    rotation: RotationConfig = RotationConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    limits: LimitsConfig = LimitsConfig()
    bundle: BundleConfig = BundleConfig()
    verify: VerifyConfig = VerifyConfig()
    retention: RetentionConfig = RetentionConfig()
    seal: SealConfig = SealConfig()
    ship: ShipConfig = ShipConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    graphs: dict[str, GraphConfig] = msgspec.field(default_factory=lambda: {"default": GraphConfig()})

    def __post_init__(self) -> None:
        if not self.graphs:
            raise ValueError("`graphs` names no graph; write a table such as [graphs.default], or leave it out")
        for name in self.retention.shipped_to:
            if name not in self.ship.targets:
                raise ValueError(f"`retention.shipped_to` names '{name}', and there is no table [ship.targets.{name}]")
