"""Every setting, its default, and its description.

``config/ergo-capture.toml`` is generated from this file; the descriptions are its comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from ergo_capture.config.paths import expand_home, expand_path
from ergo_capture.units import Duration, Mode, Size

#: A user or group.
Name = str | Annotated[int, Meta(ge=0)]


def _doc(description: str, *examples: Any, **bounds: int) -> Meta:
    """Return a setting's description, with an example if it has no default, and bounds if it is a number."""
    return Meta(description=description, examples=list(examples) or None, **bounds)  # type: ignore[call-overload, no-any-return]


def _expand_command(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with home directories at the beginning of its words.

    Raises:
        ValueError: one cannot be expanded, or the program's name is blank.
    """
    if not command[0].strip():
        raise ValueError("`command` names no program")
    try:
        return (
            expand_path(command[0]),
            *(expand_home(word) if word.startswith("~/") else word for word in command[1:]),
        )
    except ValueError as error:
        raise ValueError(f"`command` {error}") from None


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    #: The smallest values of settings whose type allows smaller ones.
    MINIMUM: ClassVar[Mapping[str, Size | Duration]] = {}
    #: The largest values, likewise.
    MAXIMUM: ClassVar[Mapping[str, Size | Duration]] = {}
    #: The settings that are paths.
    PATHS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for key, minimum in self.MINIMUM.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"`{key}` must be at least {minimum}")
        for key, maximum in self.MAXIMUM.items():
            if getattr(self, key) > maximum:
                raise ValueError(f"`{key}` must be at most {maximum}")
        for key in self.PATHS:
            try:
                msgspec.structs.force_setattr(self, key, expand_path(getattr(self, key)))
            except ValueError as error:
                raise ValueError(f"`{key}` {error}") from None


class SocketConfig(_Table, frozen=True):
    """The socket that clients connect to."""

    PATHS = ("path",)

    path: Annotated[
        str, _doc("Path of the socket; empty for the default (/run/ergo-capture/capture.sock, or the user's).")
    ] = ""
    mode: Annotated[Mode, _doc("Permissions of the socket.")] = Mode(0o660)
    group: Annotated[str, _doc("Group that owns the socket; empty for the daemon's own.")] = ""
    backlog: Annotated[int, _doc("Most connections that may wait to be accepted.", ge=1, le=65_535)] = 128


class AccessConfig(_Table, frozen=True):
    """Who may connect, of the users that the socket's mode admits; both lists empty for all of them. Root always may."""

    users: Annotated[tuple[Name, ...], _doc("Users, by name or number.")] = ()
    groups: Annotated[tuple[Name, ...], _doc("Groups whose members may connect, by name or number.")] = ()


class ControlConfig(_Table, frozen=True):
    """The socket of `ergo-capture status`, `top`, `metrics`, `reload` and `tap`, for the daemon's user and root."""

    PATHS = ("path",)

    path: Annotated[str, _doc("Path of the control socket; empty for control.sock beside capture.sock.")] = ""


class MetricsConfig(_Table, frozen=True):
    """A file of metrics for Prometheus; `ergo-capture metrics` prints the same."""

    # Writing the file without pause would slow down the journal on the same disk.
    MINIMUM = {"interval": Duration(1_000_000_000)}
    PATHS = ("textfile",)

    textfile: Annotated[str, _doc("A file ending in .prom for node_exporter's textfile collector; empty for none.")] = (
        ""
    )
    interval: Annotated[Duration, _doc("How often the file is written.")] = Duration(15_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("`textfile` must end in .prom; node_exporter reads nothing else")


class StateConfig(_Table, frozen=True):
    """The directory of the journal and the bundles."""

    PATHS = ("directory",)

    directory: Annotated[
        str, _doc("State directory; empty for the default (/var/lib/ergo-capture, or the user's).")
    ] = ""


class JournalConfig(_Table, frozen=True):
    """How events and decisions are made durable."""

    # A queue without room would block every client for ever.
    MINIMUM = {"segment_bytes": Size(4 << 10), "queue_bytes": Size(4 << 10)}

    segment_bytes: Annotated[Size, _doc("Size of one segment file, which is allocated in advance.")] = Size(64 << 20)
    decision_delay: Annotated[
        Duration, _doc("Longest time that decisions wait for events to be synced with; 0s for no wait.")
    ] = Duration(2_000_000)
    queue_bytes: Annotated[
        Size, _doc("Most bytes of events, of all clients, that wait to be written; above it no client is read.")
    ] = Size(64 << 20)
    queue_frames: Annotated[
        int, _doc("Most chunks of events that wait to be written; above it no client is read.", ge=1)
    ] = 65_536


class SessionConfig(_Table, frozen=True):
    """Sessions whose client has disconnected, and sessions after a crash."""

    linger: Annotated[
        Duration, _doc("How long a session waits for its client to resume it before it is closed as interrupted.")
    ] = Duration(30_000_000_000)
    in_doubt: Annotated[
        Literal["reinvoke", "interrupt"],
        _doc(
            "What to do after a crash with an event whose episode may have run: run it (again), or record it as "
            "aborted with an interruption."
        ),
    ] = "reinvoke"


class RotationConfig(_Table, frozen=True):
    """When a session's bundle ends and its next one begins; 0 turns a limit off."""

    max_events: Annotated[int, _doc("Most events in one bundle.", ge=0)] = 1_000_000
    max_bytes: Annotated[Size, _doc("Most bytes of events in one bundle, as received.")] = Size(1 << 30)
    max_age: Annotated[Duration, _doc("Longest time from the beginning of a bundle to its end.")] = Duration(0)
    max_journal_bytes: Annotated[
        Size,
        _doc(
            "Most bytes of journal, of all sessions together, from the beginning of a bundle to its end: an idle session "
            "keeps no more of it."
        ),
    ] = Size(2 << 30)
    force_after: Annotated[
        Duration, _doc("How long to wait for a moment when no episode is deferred before the bundle is ended anyway.")
    ] = Duration(60_000_000_000)


class SnapshotConfig(_Table, frozen=True):
    """Bundles of sessions that are still open."""

    interval: Annotated[Duration, _doc("How often to publish each open session; 0s for never.")] = Duration(0)


class LimitsConfig(_Table, frozen=True):
    """Limits for clients; 0s turns a time-out off."""

    MINIMUM = {
        "max_frame_bytes": Size(256),
        "session_queue_bytes": Size(1 << 10),
        "reply_bytes": Size(1 << 10),
        "held_bytes": Size(64 << 10),
    }
    #: A frame of the journal and a manifest have to hold it.
    MAXIMUM = {"context_bytes": Size(16 << 20)}

    max_clients: Annotated[int, _doc("Most clients connected at once.", ge=1)] = 256
    max_user_clients: Annotated[int, _doc("Most clients of one user connected at once.", ge=1)] = 128
    max_sessions: Annotated[int, _doc("Most sessions open at once.", ge=1)] = 1024
    max_user_sessions: Annotated[int, _doc("Most sessions of one user open at once.", ge=1)] = 512
    user_opens_per_second: Annotated[
        int,
        _doc(
            "New sessions of one user in a second, on average; five seconds' worth of them at once after a pause. "
            "Further ones wait for their turn. 0 turns the limit off.",
            ge=0,
        ),
    ] = 20
    max_frame_bytes: Annotated[Size, _doc("Longest line that a client may send.")] = Size(1 << 20)
    max_events_per_frame: Annotated[int, _doc("Most events in one `events` frame.", ge=1)] = 10_000
    max_bad_frames: Annotated[int, _doc("Invalid lines from one client before its connection is closed.", ge=1)] = 5
    max_id_bytes: Annotated[int, _doc("Longest event id, in UTF-8 bytes.", ge=1)] = 1024
    max_name_bytes: Annotated[
        int, _doc("Longest name of a client, graph or session in a request, in UTF-8 bytes.", ge=1)
    ] = 256
    max_label_bytes: Annotated[int, _doc("Most bytes of all labels of a session together.", ge=0)] = 4096
    session_queue_bytes: Annotated[
        Size, _doc("Most bytes of one session's events that wait to be decided; above it its client is not read.")
    ] = Size(8 << 20)
    queue_bytes: Annotated[
        Size, _doc("Most bytes of events, of all clients, that wait to be decided; above it no client is read.")
    ] = Size(64 << 20)
    user_queue_bytes: Annotated[Size, _doc("The same for the clients of one user.")] = Size(32 << 20)
    ids_bytes: Annotated[
        Size,
        _doc(
            "Memory for the event ids of open sessions (120 bytes and its length for each) and for deferred episodes "
            "(300 bytes for each, and its payload if an engine waits for it); above it no session takes more events."
        ),
    ] = Size(1 << 30)
    user_ids_bytes: Annotated[Size, _doc("The same for the sessions of one user.")] = Size(512 << 20)
    max_egress_sessions: Annotated[
        int, _doc("Most sessions open at once that have egress channels, which are processes of each session.", ge=1)
    ] = 64
    context_bytes: Annotated[
        Size,
        _doc("Most bytes of JSON that one session's context store may take; beyond it the session is interrupted."),
    ] = Size(1 << 20)
    reply_bytes: Annotated[
        Size, _doc("Most bytes of replies that wait for one client to read them; above it the client is not read.")
    ] = Size(256 << 10)
    held_bytes: Annotated[
        Size,
        _doc(
            "Memory for incomplete lines and unread replies of all clients; above it the client that holds most of it "
            "is disconnected."
        ),
    ] = Size(32 << 20)
    hello_timeout: Annotated[Duration, _doc("Time to say hello and open a session.")] = Duration(10_000_000_000)
    frame_timeout: Annotated[Duration, _doc("Time to complete a line.")] = Duration(30_000_000_000)
    idle_timeout: Annotated[Duration, _doc("Time that a client with a session may send nothing.")] = Duration(0)
    write_timeout: Annotated[Duration, _doc("Time that a client may leave replies unread.")] = Duration(30_000_000_000)


class BundleConfig(_Table, frozen=True):
    """Bundle files."""

    style: Annotated[Literal["compact", "pretty"], _doc("Layout of the JSON.")] = "compact"
    compress: Annotated[Literal["none", "zstd"], _doc("Compression of the files; every command reads both kinds.")] = (
        "none"
    )
    compose: Annotated[
        Literal["at the end", "while running"],
        _doc(
            "When the bundle of a large session is composed: when the session ends, or while it runs, so that its end "
            "takes a moment; the bytes are the same."
        ),
    ] = "while running"
    running_bytes: Annotated[
        Size, _doc("Most bytes of the temporary files of bundles that are composed while their sessions run.")
    ] = Size(4 << 30)


class VerifyConfig(_Table, frozen=True):
    """Shadow verification: finished bundles are verified once more, in a process at low priority."""

    after_publish: Annotated[
        Literal["when idle", "always", "never"],
        _doc("Whether a bundle is verified after it was published: only while a processor is idle, always, or never."),
    ] = "when idle"
    keep_bytes: Annotated[
        Size, _doc("Most bytes of journal that are kept until the bundles composed from it have been verified.")
    ] = Size(256 << 20)


class RetentionConfig(_Table, frozen=True):
    """Which finished bundles are deleted, the oldest first; 0 turns a limit off."""

    max_age: Annotated[Duration, _doc("Time from a bundle's end to its deletion.")] = Duration(0)
    max_bytes: Annotated[
        Size, _doc("Most bytes of all bundles of one graph; its newest bundle is kept, whatever its size.")
    ] = Size(0)
    max_bundles: Annotated[int, _doc("Most bundles of one graph.", ge=0)] = 0
    keep_free_bytes: Annotated[
        Size,
        _doc("Free space to keep on the disk; deletes the oldest bundles of any graph, except each graph's newest."),
    ] = Size(0)
    interval: Annotated[
        Duration, _doc("How often to check, besides after each bundle that is published; 0s for only then.")
    ] = Duration(600_000_000_000)
    shipped_to: Annotated[
        tuple[str, ...],
        _doc("Targets of [ship] that must hold a bundle before it is deleted; see `ergo-capture help ship`."),
    ] = ()
    give_up_after: Annotated[
        Duration,
        _doc("Time from a bundle's end after which it may be deleted though it was not shipped; 0s for never."),
    ] = Duration(0)


class GraphRetentionConfig(_Table, frozen=True):
    """Which bundles of this graph are deleted; a setting that is absent is as in [retention]."""

    max_age: Annotated[Duration | None, _doc("Time from a bundle's end to its deletion.", "7d")] = None
    max_bytes: Annotated[Size | None, _doc("Most bytes of all bundles of the graph.", "10GiB")] = None
    max_bundles: Annotated[Annotated[int, Meta(ge=0)] | None, _doc("Most bundles of the graph.", 100)] = None


class TargetConfig(_Table, frozen=True, kw_only=True):
    """A store that finished bundles are shipped to; there may be several of these tables."""

    # S3 takes no smaller part but the last.
    MINIMUM = {"part_bytes": Size(5 << 20), "timeout": Duration(1_000_000_000)}
    PATHS = ("ca_file",)

    url: Annotated[
        str,
        _doc(
            "The store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR.",
            "s3://bundles/prod",
        ),
    ]
    endpoint: Annotated[str, _doc("URL of an S3 or Azure service other than the provider's own.")] = ""
    region: Annotated[str, _doc("Region of an S3 bucket; empty for the environment's.")] = ""
    ca_file: Annotated[str, _doc("PEM file of the authority that signed the endpoint's certificate.")] = ""
    credentials: Annotated[
        str,
        _doc(
            "Name of a file in $CREDENTIALS_DIRECTORY, or its path; empty for the environment, or the instance's role."
        ),
    ] = ""
    verify: Annotated[
        Literal["read", "head"],
        _doc("How a stored object is verified: read back and hashed, or by its size and the store's own checksum."),
    ] = "read"
    part_bytes: Annotated[
        Size, _doc("Size of a part of a larger bundle; grows so that there are at most 9,000 parts.")
    ] = Size(8 << 20)
    timeout: Annotated[Duration, _doc("Longest time of one request.")] = Duration(300_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _STORE_URL.match(self.url):
            raise ValueError("`url` must begin with s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///")


#: What the URL of a store begins with.
_STORE_URL: Final = re.compile(r"(?:s3|gs|az)://[^/?#]+|file:///")
#: A target's name becomes part of file names.
_TARGET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class SealConfig(_Table, frozen=True):
    """Signatures that make a chain of all finished bundles, in the order of publication."""

    key: Annotated[
        str,
        _doc(
            "The key that signs: a name in $CREDENTIALS_DIRECTORY, or a path; empty for no seals. See `ergo-capture help "
            "seal`."
        ),
    ] = ""


#: A server of the announcements. Passwords are in a file of their own, which no command prints.
_NATS_URL: Final = re.compile(r"(?:nats|tls)://[^/?#@\s]+")
#: What subjects begin with: tokens without wildcards. Those that begin with `$` are the server's own.
_SUBJECT: Final = re.compile(r"(?!\$)[^\s.*>]+(?:\.[^\s.*>]+)*")


class AnnounceConfig(_Table, frozen=True):
    """Announcements of shipped bundles in a stream of NATS JetStream, by `ergo-capture ship run`."""

    MINIMUM = {"timeout": Duration(100_000_000)}
    PATHS = ("ca_file",)

    servers: Annotated[
        tuple[str, ...],
        _doc("Servers, tried in this order: tls://HOST:PORT or nats://HOST:PORT; none for no announcements."),
    ] = ()
    subject: Annotated[
        str, _doc("What the subject begins with; the name of the bundle's graph follows as a token.")
    ] = "ergo.bundles"
    credentials: Annotated[
        str,
        _doc("Name of a file in $CREDENTIALS_DIRECTORY, or its path; empty for none. See `ergo-capture help ship`."),
    ] = ""
    ca_file: Annotated[str, _doc("PEM file of the authority that signed the servers' certificates.")] = ""
    timeout: Annotated[
        Duration, _doc("Longest time that a connection, or the acknowledgement of an announcement, may take.")
    ] = Duration(10_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for server in self.servers:
            if not _NATS_URL.fullmatch(server):
                raise ValueError(
                    "`servers` must be tls://HOST:PORT or nats://HOST:PORT, without user and password: write these to "
                    "the file that `credentials` names"
                )
        if not _SUBJECT.fullmatch(self.subject):
            raise ValueError("`subject` must be tokens with `.` between, without blanks, `*` and `>`")


class ShipConfig(_Table, frozen=True):
    """Shipping of finished bundles to object stores, by `ergo-capture ship run`; the daemon itself ships nothing."""

    MINIMUM = {"interval": Duration(100_000_000), "back_off_limit": Duration(1_000_000_000)}
    PATHS = ("textfile",)

    host: Annotated[str, _doc("Name of this host in the store; empty for the machine's name.")] = ""
    interval: Annotated[Duration, _doc("How often to look for new bundles.")] = Duration(10_000_000_000)
    concurrency: Annotated[int, _doc("Bundles that are sent to one target at once.", ge=1, le=64)] = 4
    back_off_limit: Annotated[Duration, _doc("Longest pause before a store that failed is tried again.")] = Duration(
        300_000_000_000
    )
    textfile: Annotated[str, _doc("A file ending in .prom for the shipper's metrics; empty for none.")] = ""
    announce: AnnounceConfig = AnnounceConfig()
    targets: dict[str, TargetConfig] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("`textfile` must end in .prom; node_exporter reads nothing else")
        for name in self.targets:
            if not _TARGET_NAME.fullmatch(name):
                raise ValueError(
                    f"`targets` names '{name}': write up to 32 lower-case letters, digits, `-` and `_`, a letter or digit first"
                )


class ShutdownConfig(_Table, frozen=True):
    """What happens when the daemon is asked to stop."""

    drain: Annotated[Duration, _doc("Longest time to decide, commit and publish what was accepted.")] = Duration(
        60_000_000_000
    )


class LogConfig(_Table, frozen=True):
    """The daemon's log, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("The least important lines shown.")] = "info"
    format: Annotated[
        Literal["auto", "json", "console", "journald"],
        _doc(
            "auto is journald (JSON with priorities) if standard error is systemd's journal, console on a terminal, else "
            "json."
        ),
    ] = "auto"
    burst: Annotated[
        int, _doc("Most lines of one event name in one window; further ones are only counted. 0 for no limit.", ge=0)
    ] = 100
    window: Annotated[Duration, _doc("Length of a window.")] = Duration(10_000_000_000)


class FixedEngineConfig(_Table, frozen=True, tag_field="kind", tag="fixed"):
    """An engine that runs nothing: every episode ends in the same way."""

    termination: Annotated[
        Any, _doc('How episodes end: "Completed", "TimedOut", "Aborted", or { Failed = "RuntimeError" }.')
    ] = "Completed"


class ScriptedEngineConfig(_Table, frozen=True, tag_field="kind", tag="scripted"):
    """An engine that runs nothing: episodes end as a file says, by event id."""

    PATHS = ("file",)

    file: Annotated[
        str, _doc('A JSON file: {"default": ..., "schedule": {event id: [...]}}.', "/etc/ergo-capture/outcomes.json")
    ]


class PythonEngineConfig(_Table, frozen=True, tag_field="kind", tag="python"):
    """Episodes are run by a Python callable in the daemon itself."""

    callable: Annotated[str, _doc("`module:callable`, importable by the daemon.", "pricing:run")]
    pipeline: Annotated[
        int, _doc("Most calls for one session at once; read `ergo-capture help engines` before raising it.", ge=1)
    ] = 1


class RemoteEngineConfig(_Table, frozen=True):
    """Episodes are run by a program that speaks ergo-engine.v1."""

    start_timeout: Annotated[Duration, _doc("Time from the connection to the engine's `ready`.")] = Duration(
        10_000_000_000
    )
    back_off: Annotated[
        Duration, _doc("First pause before the engine is started or connected to again; it doubles each time.")
    ] = Duration(100_000_000)
    back_off_limit: Annotated[Duration, _doc("Longest pause.")] = Duration(10_000_000_000)
    hang_timeout: Annotated[
        Duration, _doc("How long the engine may answer nothing while runs are pending; 0s for no limit.")
    ] = Duration(300_000_000_000)
    max_line_bytes: Annotated[Size, _doc("Longest line that the engine may write.")] = Size(16 << 20)
    pipeline: Annotated[
        int, _doc("Most episodes of one session at once; read `ergo-capture help engines` before raising it.", ge=1)
    ] = 1
    when_away: Annotated[
        Literal["wait", "fail"],
        _doc("What runs do while the engine is away: wait for it, or fail as AdapterUnavailable."),
    ] = "wait"


class ProcessEngineConfig(RemoteEngineConfig, frozen=True, tag_field="kind", tag="process", kw_only=True):
    """Episodes are run by a child process that speaks ergo-engine.v1."""

    command: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="The program and its arguments; no shell, but `~/` at the beginning of each is expanded.",
            examples=[["/usr/local/bin/engine", "--flag"]],
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "command", _expand_command(self.command))


class SocketEngineConfig(RemoteEngineConfig, frozen=True, tag_field="kind", tag="socket", kw_only=True):
    """Episodes are run by a service that speaks ergo-engine.v1 on a Unix socket."""

    PATHS = ("path",)

    path: Annotated[str, _doc("The socket that the engine listens on.", "/run/engine.sock")]


EngineConfig = FixedEngineConfig | ScriptedEngineConfig | PythonEngineConfig | ProcessEngineConfig | SocketEngineConfig


class EgressRouteConfig(_Table, frozen=True):
    """A kind of intents that goes to a channel."""

    ack_timeout: Annotated[
        Duration | None, _doc("Time that an ack may take; default_ack_timeout unless set.", "5s")
    ] = None


class EgressChannelConfig(_Table, frozen=True):
    """A program that carries out the graph's intents and speaks ergo-egress.v1; any name, several of these tables."""

    command: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="The program and its arguments; no shell, but `~/` at the beginning of each is expanded.",
            examples=[["/usr/local/bin/place-orders"]],
        ),
    ]
    routes: Annotated[
        dict[str, EgressRouteConfig],
        _doc(
            "The kinds of intents that go to it, each with its ack_timeout if it has one of its own.",
            {"place_order": {}, "cancel_order": {"ack_timeout": "5s"}},
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "command", _expand_command(self.command))


class GraphConfig(_Table, frozen=True):
    """A graph that clients may open sessions of; there may be several of these tables."""

    PATHS = ("adapter",)

    max_in_flight: Annotated[
        int | None, _doc("Most episodes of one session at once; further ones wait. 0 defers every episode.", 1)
    ] = None
    max_per_window: Annotated[int | None, _doc("Most episodes in one rate_window; further ones are deferred.", 20)] = (
        None
    )
    rate_window: Annotated[Duration | None, _doc("Span of event time that max_per_window is counted over.", "10m")] = (
        None
    )
    deadline: Annotated[Duration | None, _doc("Longest time of an episode; 0s aborts every episode.", "30s")] = None
    max_retries: Annotated[int, _doc("Further attempts after a mechanical failure.", ge=0)] = 0
    adapter: Annotated[
        str,
        _doc(
            "The graph's adapter, a manifest in YAML; a relative path begins at this file's directory. Empty for none."
        ),
    ] = ""
    payload: Annotated[
        Literal["verbatim", "canonical"],
        _doc("Payloads in bundles without an adapter: as they were sent, or in the reference's canonical form."),
    ] = "verbatim"
    numbers: Annotated[
        Literal["reference", "exact"],
        _doc(
            "How numbers of canonical payloads are read: as the reference reads them, now and then off by one unit in "
            "the last place, or correctly rounded."
        ),
    ] = "reference"
    adapter_provenance: Annotated[
        str, _doc("What the adapter is; checked by strict replay. An adapter says it itself.")
    ] = "none"
    runtime_provenance: Annotated[
        str, _doc("What the engine is; checked by strict replay. rpv1:none takes the engine's own.")
    ] = "rpv1:none"
    users: Annotated[tuple[Name, ...], _doc("Users who may open sessions, by name or number; as in [access].")] = ()
    groups: Annotated[tuple[Name, ...], _doc("Groups whose members may, by name or number.")] = ()
    default_ack_timeout: Annotated[Duration, _doc("Time that an egress channel's ack of an intent may take.")] = (
        Duration(10_000_000_000)
    )
    retention: GraphRetentionConfig | None = None
    #: The egress channels, by name.
    egress: dict[str, EgressChannelConfig] = msgspec.field(default_factory=dict)
    engine: EngineConfig = FixedEngineConfig()


class Config(_Table, frozen=True):
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
