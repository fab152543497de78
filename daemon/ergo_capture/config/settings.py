"""Every setting, its default, and its description.

The descriptions below are the comments of ``config/ergo-capture.toml``, which is generated from this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ergo_capture.units import Duration, Mode, Size

#: A user or group.
Name = str | Annotated[int, Meta(ge=0)]


def _doc(text: str) -> Meta:
    return Meta(description=text)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    #: The least that a setting may be, where its type allows less.
    LEAST: ClassVar[Mapping[str, Size | Duration]] = {}

    def __post_init__(self) -> None:
        for key, least in self.LEAST.items():
            if getattr(self, key) < least:
                raise ValueError(f"`{key}` must be at least {least}")


class SocketConfig(_Section, frozen=True):
    """Where clients connect."""

    path: Annotated[
        str, _doc("Path of the socket; empty for the usual place (/run/ergo-capture/capture.sock, or the user's).")
    ] = ""
    mode: Annotated[Mode, _doc("Permissions of the socket.")] = Mode(0o660)
    group: Annotated[str, _doc("Group that owns the socket; empty for the daemon's own.")] = ""
    backlog: Annotated[int, Meta(ge=1, le=65_535, description="Connections that may wait to be accepted.")] = 128


class AccessConfig(_Section, frozen=True):
    """Who may connect, of those whom the socket's mode lets in; both lists empty for all of them. Root always may."""

    users: Annotated[tuple[Name, ...], _doc("Users, by name or number.")] = ()
    groups: Annotated[tuple[Name, ...], _doc("Groups, by name or number: their members.")] = ()


class ControlConfig(_Section, frozen=True):
    """Where the operator asks: `ergo-capture status`, `top`, `metrics`, `reload`, `tap`. For the daemon's user and root."""

    path: Annotated[str, _doc("Path of the control socket; empty for control.sock beside capture.sock.")] = ""


class MetricsConfig(_Section, frozen=True):
    """Figures for Prometheus, beside `ergo-capture metrics`."""

    # Why: a file that is written without pause would keep the disk from its work.
    LEAST = {"interval": Duration(1_000_000_000)}

    textfile: Annotated[str, _doc("A file ending in .prom for node_exporter's textfile collector; empty for none.")] = (
        ""
    )
    interval: Annotated[Duration, _doc("How often it is written.")] = Duration(15_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("`textfile` must end in .prom; node_exporter reads nothing else")


class StateConfig(_Section, frozen=True):
    """Where the journal and the bundles are."""

    directory: Annotated[
        str, _doc("State directory; empty for the usual place (/var/lib/ergo-capture, or the user's).")
    ] = ""


class JournalConfig(_Section, frozen=True):
    """How events and decisions become durable."""

    # Why: a queue without room would keep every client waiting for ever.
    LEAST = {"segment_bytes": Size(4 << 10), "queue_bytes": Size(4 << 10)}

    segment_bytes: Annotated[Size, _doc("Size of one segment; allocated ahead.")] = Size(64 << 20)
    decision_delay: Annotated[
        Duration, _doc("How long decisions alone wait for an event to be synced with; 0s for not at all.")
    ] = Duration(2_000_000)
    queue_bytes: Annotated[
        Size, _doc("Events that may wait for the disk, in bytes, over all clients; beyond it nothing is read.")
    ] = Size(64 << 20)
    queue_frames: Annotated[int, Meta(ge=1, description="The same in chunks of events.")] = 65_536


class SessionConfig(_Section, frozen=True):
    """What becomes of sessions without a client."""

    linger: Annotated[
        Duration, _doc("How long a session waits for its client to come back before it is closed as interrupted.")
    ] = Duration(30_000_000_000)
    in_doubt: Annotated[
        Literal["reinvoke", "interrupt"],
        _doc(
            "After a crash, what to do with an event whose episode may have run: run it (again), or record it as "
            "aborted with an interruption."
        ),
    ] = "reinvoke"


class RotationConfig(_Section, frozen=True):
    """When a session's bundle ends and the next begins; 0 turns a bound off."""

    max_events: Annotated[int, Meta(ge=0, description="Events in one bundle.")] = 0
    max_bytes: Annotated[Size, _doc("Bytes of events, as received, in one bundle.")] = Size(0)
    max_age: Annotated[Duration, _doc("Time from a bundle's first moment to its end.")] = Duration(0)
    force_after: Annotated[
        Duration, _doc("How long to wait for a moment when nothing is deferred before cutting all the same.")
    ] = Duration(60_000_000_000)


class SnapshotConfig(_Section, frozen=True):
    """Bundles of sessions that are still running."""

    interval: Annotated[Duration, _doc("How often to publish a running session; 0s for never.")] = Duration(0)


class LimitsConfig(_Section, frozen=True):
    """What clients may cost; 0s turns a time-out off."""

    LEAST = {
        "max_frame_bytes": Size(256),
        "session_queue_bytes": Size(1 << 10),
        "reply_bytes": Size(1 << 10),
        "held_bytes": Size(64 << 10),
    }

    max_clients: Annotated[int, Meta(ge=1, description="Clients at once.")] = 256
    max_user_clients: Annotated[int, Meta(ge=1, description="Clients of one user at once.")] = 128
    max_sessions: Annotated[int, Meta(ge=1, description="Sessions that are open at once.")] = 1024
    max_user_sessions: Annotated[int, Meta(ge=1, description="Sessions of one user that are open at once.")] = 512
    user_opens_per_second: Annotated[
        int,
        Meta(
            ge=0,
            description="New sessions of one user in a second, on average; after a pause five seconds' worth at once. More "
            "of them wait for their turn. 0 turns it off.",
        ),
    ] = 20
    max_frame_bytes: Annotated[Size, _doc("Longest line a client may send.")] = Size(1 << 20)
    max_events_per_frame: Annotated[int, Meta(ge=1, description="Most events in one `events` frame.")] = 10_000
    max_bad_frames: Annotated[
        int, Meta(ge=1, description="Unreadable lines from one client before its connection ends.")
    ] = 5
    max_id_bytes: Annotated[int, Meta(ge=1, description="Longest event id, in UTF-8 bytes.")] = 1024
    max_name_bytes: Annotated[
        int, Meta(ge=1, description="Longest name of a client, graph or session in a request, in UTF-8 bytes.")
    ] = 256
    max_label_bytes: Annotated[int, Meta(ge=0, description="All labels of a session together.")] = 4096
    session_queue_bytes: Annotated[
        Size, _doc("Events of one session that may wait to be decided; beyond it its client is not read.")
    ] = Size(8 << 20)
    queue_bytes: Annotated[
        Size,
        _doc("Memory for events of all clients that wait to be decided; beyond it they are read no faster than that."),
    ] = Size(64 << 20)
    user_queue_bytes: Annotated[Size, _doc("The same for the clients of one user.")] = Size(32 << 20)
    ids_bytes: Annotated[
        Size,
        _doc(
            "Memory for the event ids of open sessions, 120 bytes and its length each, and 300 bytes for each deferred "
            "episode, with its payload where an engine waits for it; beyond it no session takes more events."
        ),
    ] = Size(1 << 30)
    user_ids_bytes: Annotated[Size, _doc("The same for the sessions of one user.")] = Size(512 << 20)
    reply_bytes: Annotated[Size, _doc("Answers to one client that may wait; beyond it the client is not read.")] = Size(
        256 << 10
    )
    held_bytes: Annotated[
        Size,
        _doc("Begun lines and unread answers of all clients; beyond it the client that holds most of it is let go."),
    ] = Size(32 << 20)
    hello_timeout: Annotated[Duration, _doc("Time to say hello and open a session.")] = Duration(10_000_000_000)
    frame_timeout: Annotated[Duration, _doc("Time to finish a line that was begun.")] = Duration(30_000_000_000)
    idle_timeout: Annotated[Duration, _doc("Time a client with a session may say nothing.")] = Duration(0)
    write_timeout: Annotated[Duration, _doc("Time to read what the daemon has to say.")] = Duration(30_000_000_000)


class BundleConfig(_Section, frozen=True):
    """Bundle files."""

    style: Annotated[Literal["compact", "pretty"], _doc("Layout of the JSON.")] = "compact"
    compress: Annotated[
        Literal["none", "zstd"], _doc("Whether the files are compressed; every command reads either kind.")
    ] = "none"


class RetentionConfig(_Section, frozen=True):
    """Which finished bundles are deleted, the oldest first; 0 turns a bound off."""

    max_age: Annotated[Duration, _doc("Time from a bundle's end to its deletion.")] = Duration(0)
    max_bytes: Annotated[Size, _doc("Bundles of one graph together; its newest stays however large it is.")] = Size(0)
    max_bundles: Annotated[int, Meta(ge=0, description="Bundles of one graph.")] = 0
    keep_free_bytes: Annotated[
        Size,
        _doc("Room to keep free on the disk, whichever graph's bundles are the oldest; the newest of each graph stay."),
    ] = Size(0)
    interval: Annotated[
        Duration, _doc("How often to look, besides after each bundle that is published; 0s for only then.")
    ] = Duration(600_000_000_000)


class GraphRetentionConfig(_Section, frozen=True):
    """Bounds for the bundles of one graph; what is not given is as in [retention]."""

    max_age: Annotated[Duration | None, _doc("Time from a bundle's end to its deletion.")] = None
    max_bytes: Annotated[Size | None, _doc("Bundles of the graph together.")] = None
    max_bundles: Annotated[Annotated[int, Meta(ge=0)] | None, _doc("Bundles of the graph.")] = None


class ShutdownConfig(_Section, frozen=True):
    """The end."""

    drain: Annotated[Duration, _doc("Time to decide, commit and publish what was accepted, once asked to stop.")] = (
        Duration(60_000_000_000)
    )


class LogConfig(_Section, frozen=True):
    """What the daemon says about itself."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("The least important lines shown.")] = "info"
    format: Annotated[
        Literal["auto", "json", "console", "journald"],
        _doc("auto is journald (JSON with priorities) where it listens, console on a terminal, JSON lines elsewhere."),
    ] = "auto"
    burst: Annotated[
        int, Meta(ge=0, description="Lines of one name in one window before the rest is only counted; 0 for all.")
    ] = 100
    window: Annotated[Duration, _doc("Length of a window.")] = Duration(10_000_000_000)


class FixedEngineConfig(_Section, frozen=True, tag_field="kind", tag="fixed"):
    """Every episode ends alike."""

    termination: Annotated[Any, _doc('How: "Completed", "TimedOut", "Aborted", or { Failed = "RuntimeError" }.')] = (
        "Completed"
    )


class ScriptedEngineConfig(_Section, frozen=True, tag_field="kind", tag="scripted"):
    """Episodes end as a file says, per event id."""

    file: Annotated[str, _doc('A JSON file: {"default": ..., "schedule": {event id: [...]}}.')]


class PythonEngineConfig(_Section, frozen=True, tag_field="kind", tag="python"):
    """Episodes are run by a Python callable in the daemon itself."""

    callable: Annotated[str, _doc("`module:callable`, importable by the daemon.")]
    pipeline: Annotated[int, Meta(ge=1, description="Calls for one session at once; see the README first.")] = 1


class _RemoteEngineConfig(_Section, frozen=True):
    """Episodes are run by a program that speaks ergo-engine.v1."""

    start_timeout: Annotated[Duration, _doc("Time from reaching the engine to its `ready`.")] = Duration(10_000_000_000)
    back_off: Annotated[Duration, _doc("First pause before the engine is reached again; it doubles.")] = Duration(
        100_000_000
    )
    back_off_limit: Annotated[Duration, _doc("Longest pause.")] = Duration(10_000_000_000)
    hang_timeout: Annotated[
        Duration, _doc("How long the engine may answer nothing while it is asked; 0s for ever.")
    ] = Duration(300_000_000_000)
    max_line_bytes: Annotated[Size, _doc("Longest line that the engine may say.")] = Size(16 << 20)
    pipeline: Annotated[int, Meta(ge=1, description="Episodes of one session at once; see the README first.")] = 1
    when_away: Annotated[
        Literal["wait", "fail"], _doc("Runs while the engine is away: `wait`, or `fail` as AdapterUnavailable.")
    ] = "wait"


class ProcessEngineConfig(_RemoteEngineConfig, frozen=True, tag_field="kind", tag="process", kw_only=True):
    """Episodes are run by a child process."""

    command: Annotated[tuple[str, ...], Meta(min_length=1, description="The program and its arguments.")]


class SocketEngineConfig(_RemoteEngineConfig, frozen=True, tag_field="kind", tag="socket", kw_only=True):
    """Episodes are run by a service on a Unix socket."""

    path: Annotated[str, _doc("The socket that the engine listens on.")]


EngineConfig = FixedEngineConfig | ScriptedEngineConfig | PythonEngineConfig | ProcessEngineConfig | SocketEngineConfig


class GraphConfig(_Section, frozen=True):
    """A graph that clients may open sessions of."""

    max_in_flight: Annotated[int | None, _doc("Episodes at once.")] = None
    max_per_window: Annotated[int | None, _doc("Invocations in one rate_window.")] = None
    rate_window: Annotated[Duration | None, _doc("Span of event time that max_per_window is counted over.")] = None
    deadline: Annotated[Duration | None, _doc("Time an episode may take; 0s aborts every episode.")] = None
    max_retries: Annotated[int, Meta(ge=0, description="Further attempts after a mechanical failure.")] = 0
    adapter_provenance: Annotated[str, _doc("What the adapter is, for strict replay.")] = "none"
    runtime_provenance: Annotated[str, _doc("What the engine is, for strict replay.")] = "rpv1:none"
    users: Annotated[tuple[Name, ...], _doc("Users who may open sessions, by name or number; see [access].")] = ()
    groups: Annotated[tuple[Name, ...], _doc("Groups whose members may, by name or number.")] = ()
    retention: Annotated[
        GraphRetentionConfig | None, _doc('In place of [retention], a table such as { max_age = "7d" }.')
    ] = None
    engine: Annotated[
        EngineConfig,
        _doc('What runs the episodes: "fixed", or a table of the kind fixed, scripted, python, process or socket.'),
    ] = FixedEngineConfig()


class Config(_Section, frozen=True):
    """All of it."""

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
    retention: RetentionConfig = RetentionConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    graphs: dict[str, GraphConfig] = msgspec.field(default_factory=lambda: {"default": GraphConfig()})

    def __post_init__(self) -> None:
        if not self.graphs:
            raise ValueError("`graphs` names no graph; write a table such as [graphs.default], or leave it out")
