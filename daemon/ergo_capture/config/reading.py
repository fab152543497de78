"""The configuration as it is read from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from ergo_capture.config.messages import in_words, suggestion
from ergo_capture.config.paths import control_beside, usual_file, usual_socket, usual_state
from ergo_capture.config.settings import Config
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import decode_unit


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
        return msgspec.convert(data, type=Config, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"read configuration '{name}': {in_words(str(error), data)}",
            op="read configuration",
            path=name,
            hint=suggestion(str(error)),
        ) from error


def _with_engine_tables(data: dict[str, Any]) -> dict[str, Any]:
    """``engine = "fixed"`` as the table that it is short for."""
    graphs = data.get("graphs")
    if isinstance(graphs, dict):
        for graph in graphs.values():
            if isinstance(graph, dict) and isinstance(graph.get("engine"), str):
                graph["engine"] = {"kind": graph["engine"]}
    return data
