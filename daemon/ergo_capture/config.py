"""The configuration: every setting, its default, and what a file may say.

Owns: the settings and their documentation, finding and reading the file, ConfigError.
Not here: objects made of settings (``server/composition.py``), the commands (``cli/config.py``).

The descriptions below are the comments of ``config/ergo-capture.toml``, which is generated from this file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

import msgspec
from msgspec import Meta

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import Duration, Mode, Size

SYSTEM_FILE: Final = Path("/etc/ergo-capture/config.toml")


class ConfigError(ErgoCaptureError):
    """The configuration cannot be used; names the file, the key and what to write."""

    exit_code = ExitCode.CONFIG


def _doc(text: str) -> Meta:
    return Meta(description=text)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    #: The least that a setting may be, where its type allows less.
    LEAST: ClassVar[Mapping[str, Size]] = {}

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

    LEAST = {"max_frame_bytes": Size(256), "session_queue_bytes": Size(1 << 10)}

    max_clients: Annotated[int, Meta(ge=1, description="Clients at once.")] = 256
    max_sessions: Annotated[int, Meta(ge=1, description="Sessions that are open at once.")] = 1024
    max_frame_bytes: Annotated[Size, _doc("Longest line a client may send.")] = Size(1 << 20)
    max_events_per_frame: Annotated[int, Meta(ge=1, description="Most events in one `events` frame.")] = 10_000
    max_bad_frames: Annotated[
        int, Meta(ge=1, description="Unreadable lines from one client before its connection ends.")
    ] = 5
    max_id_bytes: Annotated[int, Meta(ge=1, description="Longest event id, in UTF-8 bytes.")] = 1024
    max_label_bytes: Annotated[int, Meta(ge=0, description="All labels of a session together.")] = 4096
    session_queue_bytes: Annotated[
        Size, _doc("Events of one session that may wait to be decided; beyond it its client is not read.")
    ] = Size(8 << 20)
    hello_timeout: Annotated[Duration, _doc("Time to say hello and open a session.")] = Duration(10_000_000_000)
    frame_timeout: Annotated[Duration, _doc("Time to finish a line that was begun.")] = Duration(30_000_000_000)
    idle_timeout: Annotated[Duration, _doc("Time a client with a session may say nothing.")] = Duration(0)
    write_timeout: Annotated[Duration, _doc("Time to read what the daemon has to say.")] = Duration(30_000_000_000)


class BundleConfig(_Section, frozen=True):
    """Bundle files."""

    style: Annotated[Literal["compact", "pretty"], _doc("Layout of the JSON.")] = "compact"


class ShutdownConfig(_Section, frozen=True):
    """The end."""

    drain: Annotated[Duration, _doc("Time to decide, commit and publish what was accepted, once asked to stop.")] = (
        Duration(60_000_000_000)
    )


class LogConfig(_Section, frozen=True):
    """What the daemon says about itself."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("The least important lines shown.")] = "info"
    format: Annotated[
        Literal["auto", "json", "console"], _doc("auto is console on a terminal and JSON lines elsewhere.")
    ] = "auto"


class FixedEngineConfig(_Section, frozen=True, tag_field="kind", tag="fixed"):
    """Every episode ends alike."""

    termination: Annotated[Any, _doc('How: "Completed", "TimedOut", "Aborted", or { Failed = "RuntimeError" }.')] = (
        "Completed"
    )


class ScriptedEngineConfig(_Section, frozen=True, tag_field="kind", tag="scripted"):
    """Episodes end as a file says, per event id."""

    file: Annotated[str, _doc('A JSON file: {"default": ..., "schedule": {event id: [...]}}.')]


class GraphConfig(_Section, frozen=True):
    """A graph that clients may open sessions of."""

    max_in_flight: Annotated[int | None, _doc("Episodes at once.")] = None
    max_per_window: Annotated[int | None, _doc("Invocations in one rate_window.")] = None
    rate_window: Annotated[Duration | None, _doc("Span of event time that max_per_window is counted over.")] = None
    deadline: Annotated[Duration | None, _doc("Time an episode may take; 0s aborts every episode.")] = None
    max_retries: Annotated[int, Meta(ge=0, description="Further attempts after a mechanical failure.")] = 0
    adapter_provenance: Annotated[str, _doc("What the adapter is, for strict replay.")] = "none"
    runtime_provenance: Annotated[str, _doc("What the engine is, for strict replay.")] = "rpv1:none"
    engine: Annotated[
        FixedEngineConfig | ScriptedEngineConfig, _doc('What runs the episodes: "fixed", or a table with a kind.')
    ] = FixedEngineConfig()


class Config(_Section, frozen=True):
    """All of it."""

    socket: SocketConfig = SocketConfig()
    state: StateConfig = StateConfig()
    journal: JournalConfig = JournalConfig()
    session: SessionConfig = SessionConfig()
    rotation: RotationConfig = RotationConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    limits: LimitsConfig = LimitsConfig()
    bundle: BundleConfig = BundleConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
    graphs: dict[str, GraphConfig] = msgspec.field(default_factory=lambda: {"default": GraphConfig()})

    def __post_init__(self) -> None:
        if not self.graphs:
            raise ValueError("`graphs` names no graph; write a table such as [graphs.default], or leave it out")


def load(path: Path | None = None, *, socket: str = "", state: str = "") -> Config:
    """The configuration in force: the file, if there is one, and what the command line says above it.

    Args:
        path: the file; None for the usual one, which need not be there.
        socket: in place of ``socket.path``.
        state: in place of ``state.directory``.

    Raises:
        ConfigError: the file cannot be read, or says something it may not.
    """
    file = path or usual_file()
    config = Config() if file is None else _read(file)
    return msgspec.structs.replace(
        config,
        socket=msgspec.structs.replace(config.socket, path=socket or config.socket.path or str(usual_socket())),
        state=msgspec.structs.replace(config.state, directory=state or config.state.directory or str(usual_state())),
    )


def usual_file() -> Path | None:
    """The file that is read when none is named: the user's, else the system's; None where neither is there."""
    import platformdirs  # noqa: PLC0415 - only the daemon needs it

    candidates = [Path(platformdirs.user_config_path("ergo-capture")) / "config.toml", SYSTEM_FILE]
    return next((candidate for candidate in candidates if _is_there(candidate)), None)


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except PermissionError:
        # Why: a file that we may not see is not passed over in silence; reading it will say so.
        return True


def usual_state() -> Path:
    """Where the state is when nothing else is said: systemd's word, else the system's place, else the user's."""
    import platformdirs  # noqa: PLC0415 - as above

    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/ergo-capture")
    return Path(platformdirs.user_state_path("ergo-capture"))


def usual_socket() -> Path:
    """Where the socket is when nothing else is said."""
    import platformdirs  # noqa: PLC0415 - as above

    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / "capture.sock"
    if os.geteuid() == 0:
        return Path("/run/ergo-capture/capture.sock")
    return Path(platformdirs.user_runtime_path("ergo-capture")) / "capture.sock"


def _read(file: Path) -> Config:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"read configuration '{file}': {reason}",
            op="read configuration",
            path=file,
            hint="name a file that you may read with --config; `ergo-capture config default` prints one",
        ) from error
    return parse(text, str(file))


def parse(text: str, name: str) -> Config:
    """The configuration that a text says; ``name`` is what errors call it.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        data = _with_engine_tables(tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"read configuration '{name}': {error}",
            op="read configuration",
            path=name,
            hint="mend the TOML at that place",
        ) from error
    try:
        return msgspec.convert(data, type=Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"read configuration '{name}': {_in_words(str(error), data)}",
            op="read configuration",
            path=name,
            hint=_suggestion(str(error)),
        ) from error


def _with_engine_tables(data: dict[str, Any]) -> dict[str, Any]:
    """``engine = "fixed"`` as the table that it is short for."""
    graphs = data.get("graphs")
    if isinstance(graphs, dict):
        for graph in graphs.values():
            if isinstance(graph, dict) and isinstance(graph.get("engine"), str):
                graph["engine"] = {"kind": graph["engine"]}
    return data


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Duration | Size | Mode):
        return kind.parse(value)
    raise NotImplementedError(kind)


_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]+)`")
_ENGINES: Final = (FixedEngineConfig, ScriptedEngineConfig)


def _in_words(message: str, data: Mapping[str, Any]) -> str:
    """What msgspec says, with the key in front and its graph's name in it."""
    match = _PATH.search(message)
    where, text = match[1] if match else "", _PATH.sub("", message)
    key = where.replace("[...]", f".{_key(_wrong_graph(data))}", 1)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"there is no setting `{key}.{unknown[1]}`" if key else f"there is no setting `{unknown[1]}`"
    choices = _choices(where)
    if choices:
        text += f", expected one of {', '.join(f'`{choice}`' for choice in choices)}"
    return f"`{key}`: {text}" if key else text


def _wrong_graph(data: Mapping[str, Any]) -> str:
    """The graph whose table is refused. Why: msgspec's paths say ``[...]`` for whichever it is."""
    graphs = data.get("graphs")
    for name, graph in graphs.items() if isinstance(graphs, dict) else ():
        try:
            msgspec.convert(graph, type=GraphConfig, dec_hook=_decode)
        except msgspec.ValidationError:
            return str(name)
    return "NAME"


def _choices(where: str) -> list[str]:
    """The words that a setting may be, if there are only so many."""
    if where == "graphs[...].engine.kind":
        return [str(engine.__struct_config__.tag) for engine in _ENGINES]
    section, _, key = where.partition(".")
    for field in msgspec.structs.fields(Config):
        if field.name == section and key in getattr(field.type, "__struct_fields__", ()):
            kind = next(setting.type for setting in msgspec.structs.fields(field.type) if setting.name == key)
            return [word for choice in get_args(kind) for word in get_args(choice) or [choice] if isinstance(word, str)]
    return []


def _suggestion(message: str) -> str:
    unknown, match = _UNKNOWN.search(message), _PATH.search(message)
    if not unknown:
        return "`ergo-capture config default` prints every setting with its default"
    where = match[1].replace("[...]", ".NAME", 1) if match else ""
    known = [key.removeprefix(f"{where}.").partition(".")[0] for key in known_keys() if key.startswith(f"{where}.")]
    if where == "graphs.NAME.engine":
        known = ["kind", *(key for engine in _ENGINES for key in engine.__struct_fields__)]
    close = difflib.get_close_matches(unknown[1], known if where else Config.__struct_fields__, n=1)
    return f"did you mean `{close[0]}`?" if close else "`ergo-capture config default` prints every setting"


def known_keys() -> list[str]:
    """Every setting as ``section.key``, graphs as ``graphs.NAME.key``."""
    keys = []
    for field in msgspec.structs.fields(Config):
        section = GraphConfig if field.name == "graphs" else field.type
        prefix = "graphs.NAME" if field.name == "graphs" else field.name
        keys += [f"{prefix}.{key}" for key in section.__struct_fields__]
    return keys


def to_toml(config: Config, *, comments: bool = False) -> str:
    """The configuration as a file; with ``comments``, each setting under its description."""
    lines: list[str] = []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if field.name == "graphs":
            for name, graph in value.items():
                lines += _table(f"graphs.{_key(name)}", graph, comments=comments)
        else:
            lines += _table(field.name, value, comments=comments)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(name: str, section: msgspec.Struct, *, comments: bool) -> list[str]:
    lines = ["", f"# {(type(section).__doc__ or '').strip()}"] if comments else [""]
    lines.append(f"[{name}]")
    info = msgspec.inspect.type_info(type(section))
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        value = getattr(section, field.encode_name)
        if comments:
            description = _description(type(section), field.encode_name)
            lines.append(f"# {description}")
        lines.append(f"# {field.encode_name} =" if value is None else f"{field.encode_name} = {_toml(value)}")
    return lines


def _description(section: type[msgspec.Struct], key: str) -> str:
    annotation = section.__annotations__.get(key)
    resolved = next(field.type for field in msgspec.structs.fields(section) if field.name == key)
    for meta in getattr(resolved, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return str(annotation)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's; DEL, which JSON leaves bare, is one more."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _toml(value: Any) -> str:
    if isinstance(value, Duration | Size | Mode):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return _quoted(value)
