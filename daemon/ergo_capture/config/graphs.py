"""The settings of a graph: its limits, its adapter, its engine, its egress channels, and its retention."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ergo_capture.config.tables import Name, Table, doc, expand_command
from ergo_capture.units import Duration, Size


class GraphRetentionConfig(Table, frozen=True):
    """Which bundles of this graph are deleted; a setting that is absent is as in [retention]."""

    max_age: Annotated[Duration | None, doc("Time from a bundle's end to its deletion.", "7d")] = None
    max_bytes: Annotated[Size | None, doc("Most bytes of all bundles of the graph.", "10GiB")] = None
    max_bundles: Annotated[Annotated[int, Meta(ge=0)] | None, doc("Most bundles of the graph.", 100)] = None


class FixedEngineConfig(Table, frozen=True, tag_field="kind", tag="fixed"):
    """An engine that runs nothing: every episode ends in the same way."""

    termination: Annotated[
        Any, doc('How episodes end: "Completed", "TimedOut", "Aborted", or { Failed = "RuntimeError" }.')
    ] = "Completed"


class ScriptedEngineConfig(Table, frozen=True, tag_field="kind", tag="scripted"):
    """An engine that runs nothing: episodes end as a file says, by event id."""

    PATHS = ("file",)

    file: Annotated[
        str, doc('A JSON file: {"default": ..., "schedule": {event id: [...]}}.', "/etc/ergo-capture/outcomes.json")
    ]


class PythonEngineConfig(Table, frozen=True, tag_field="kind", tag="python"):
    """Episodes are run by a Python callable in the daemon itself."""

    callable: Annotated[str, doc("`module:callable`, importable by the daemon.", "pricing:run")]
    pipeline: Annotated[
        int, doc("Most calls for one session at once; read `ergo-capture help engines` before raising it.", ge=1)
    ] = 1


class RemoteEngineConfig(Table, frozen=True):
    """Episodes are run by a program that speaks ergo-engine.v1."""

    start_timeout: Annotated[Duration, doc("Time from the connection to the engine's `ready`.")] = Duration(
        10_000_000_000
    )
    back_off: Annotated[
        Duration, doc("First pause before the engine is started or connected to again; it doubles each time.")
    ] = Duration(100_000_000)
    back_off_limit: Annotated[Duration, doc("Longest pause.")] = Duration(10_000_000_000)
    hang_timeout: Annotated[
        Duration, doc("How long the engine may answer nothing while runs are pending; 0s for no limit.")
    ] = Duration(300_000_000_000)
    max_line_bytes: Annotated[Size, doc("Longest line that the engine may write.")] = Size(16 << 20)
    pipeline: Annotated[
        int, doc("Most episodes of one session at once; read `ergo-capture help engines` before raising it.", ge=1)
    ] = 1
    when_away: Annotated[
        Literal["wait", "fail"],
        doc("What runs do while the engine is away: wait for it, or fail as AdapterUnavailable."),
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
        msgspec.structs.force_setattr(self, "command", expand_command(self.command))


class SocketEngineConfig(RemoteEngineConfig, frozen=True, tag_field="kind", tag="socket", kw_only=True):
    """Episodes are run by a service that speaks ergo-engine.v1 on a Unix socket."""

    PATHS = ("path",)

    path: Annotated[str, doc("The socket that the engine listens on.", "/run/engine.sock")]


EngineConfig = FixedEngineConfig | ScriptedEngineConfig | PythonEngineConfig | ProcessEngineConfig | SocketEngineConfig


class EgressRouteConfig(Table, frozen=True):
    """A kind of intents that goes to a channel."""

    ack_timeout: Annotated[Duration | None, doc("Time that an ack may take; default_ack_timeout unless set.", "5s")] = (
        None
    )


class EgressChannelConfig(Table, frozen=True):
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
        doc(
            "The kinds of intents that go to it, each with its ack_timeout if it has one of its own.",
            {"place_order": {}, "cancel_order": {"ack_timeout": "5s"}},
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        msgspec.structs.force_setattr(self, "command", expand_command(self.command))


class GraphConfig(Table, frozen=True):
    """A graph that clients may open sessions of; there may be several of these tables."""

    PATHS = ("adapter",)

    max_in_flight: Annotated[
        int | None, doc("Most episodes of one session at once; further ones wait. 0 defers every episode.", 1)
    ] = None
    max_per_window: Annotated[int | None, doc("Most episodes in one rate_window; further ones are deferred.", 20)] = (
        None
    )
    rate_window: Annotated[Duration | None, doc("Span of event time that max_per_window is counted over.", "10m")] = (
        None
    )
    deadline: Annotated[Duration | None, doc("Longest time of an episode; 0s aborts every episode.", "30s")] = None
    max_retries: Annotated[int, doc("Further attempts after a mechanical failure.", ge=0)] = 0
    adapter: Annotated[
        str,
        doc(
            "The graph's adapter, a manifest in YAML; a relative path begins at this file's directory. Empty for none."
        ),
    ] = ""
    payload: Annotated[
        Literal["verbatim", "canonical"],
        doc("Payloads in bundles without an adapter: as they were sent, or in the reference's canonical form."),
    ] = "verbatim"
    numbers: Annotated[
        Literal["reference", "exact"],
        doc(
            "How numbers of canonical payloads are read: as the reference reads them, now and then off by one unit in "
            "the last place, or correctly rounded."
        ),
    ] = "reference"
    adapter_provenance: Annotated[
        str, doc("What the adapter is; checked by strict replay. An adapter says it itself.")
    ] = "none"
    runtime_provenance: Annotated[
        str, doc("What the engine is; checked by strict replay. rpv1:none takes the engine's own.")
    ] = "rpv1:none"
    users: Annotated[tuple[Name, ...], doc("Users who may open sessions, by name or number; as in [access].")] = ()
    groups: Annotated[tuple[Name, ...], doc("Groups whose members may, by name or number.")] = ()
    default_ack_timeout: Annotated[Duration, doc("Time that an egress channel's ack of an intent may take.")] = (
        Duration(10_000_000_000)
    )
    retention: GraphRetentionConfig | None = None
    #: The egress channels, by name.
    egress: dict[str, EgressChannelConfig] = msgspec.field(default_factory=dict)
    engine: EngineConfig = FixedEngineConfig()
