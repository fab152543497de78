"""The configuration: where its file is, what it says, what is wrong with it, and how it is printed.

Owns: finding and reading the file, ConfigError, and ``to_toml``.
Not here: the settings (``settings.py``), objects made of them (``server/composition.py``), the commands
(``cli/config.py``).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec import Meta

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.settings import (
    Config,
    EngineConfig,
    FixedEngineConfig,
    GraphConfig,
    GraphRetentionConfig,
    ScriptedEngineConfig,
)
from ergo_capture.units import Duration, Mode, Size

__all__ = [
    "SYSTEM_FILE",
    "Config",
    "ConfigError",
    "FixedEngineConfig",
    "GraphConfig",
    "GraphRetentionConfig",
    "ScriptedEngineConfig",
    "control_beside",
    "known_keys",
    "load",
    "parse",
    "to_toml",
    "usual_file",
    "usual_socket",
    "usual_state",
]

SYSTEM_FILE: Final = Path("/etc/ergo-capture/config.toml")


class ConfigError(ErgoCaptureError):
    """The configuration cannot be used; names the file, the key and what to write."""

    exit_code: int = ExitCode.CONFIG


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
    place = socket or config.socket.path or str(usual_socket())
    return msgspec.structs.replace(
        config,
        socket=msgspec.structs.replace(config.socket, path=place),
        control=msgspec.structs.replace(config.control, path=config.control.path or str(control_beside(Path(place)))),
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
    with warnings.catch_warnings():
        # Why: without XDG_RUNTIME_DIR (su, cron) it warns with a line of its own source; the path is said where it matters.
        warnings.simplefilter("ignore")
        return Path(platformdirs.user_runtime_path("ergo-capture")) / "capture.sock"


def control_beside(socket: Path) -> Path:
    """Where the control socket of the daemon with that socket is when nothing else is said.

    Why by the socket's name: two daemons may have their sockets in one directory.
    """
    return socket.with_name("control.sock" if socket.name == "capture.sock" else f"{socket.stem}.control.sock")


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
_ENGINES: Final = get_args(EngineConfig)


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
    if where == "graphs.NAME.retention":
        known = list(GraphRetentionConfig.__struct_fields__)
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
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, GraphRetentionConfig):
        value = {key: item for key, item in msgspec.structs.asdict(value).items() if item is not None}
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return _quoted(value)
