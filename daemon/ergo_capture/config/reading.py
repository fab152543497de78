"""Read the configuration from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ergo_capture.config.messages import mistakes
from ergo_capture.config.paths import (
    control_socket_beside,
    default_file,
    default_socket,
    default_state_directory,
    find_socket,
    find_state_directory,
)
from ergo_capture.config.settings import Config
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.protocol.address import AddressError, socket_path
from ergo_capture.units import decode_unit


class ConfigError(ErgoCaptureError):
    """The configuration cannot be used; the message names the file and the setting, the hint says what to write."""

    exit_code: int = ExitCode.CONFIG
    #: Errors for the other mistakes in the file.
    others: Sequence[ConfigError] = ()


def load(path: Path | None = None, *, socket: str = "", state: str = "", client: bool = False) -> Config:
    """Return the configuration: that of the file, if there is one, with the command line's settings applied.

    Args:
        path: the file; None for the default one, which need not exist.
        socket: replaces ``socket.path`` unless empty.
        state: replaces ``state.directory`` unless empty.
        client: whether the configuration is used to find a daemon: if paths are not configured and the user has no
            daemon, those of the system's service are used.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or invalid.
    """
    file = path or default_file()
    config = Config() if file is None else _read(file)
    try:
        capture = socket_path(socket or config.socket.path or str(find_socket() if client else default_socket()))
        control = socket_path(config.control.path or str(control_socket_beside(Path(capture))))
        found = find_state_directory if client else default_state_directory
        state_directory = state or config.state.directory or str(found())
        return msgspec.structs.replace(
            config,
            socket=msgspec.structs.replace(config.socket, path=capture),
            control=msgspec.structs.replace(config.control, path=control),
            state=msgspec.structs.replace(config.state, directory=state_directory),
        )
    except AddressError as error:
        raise ConfigError(error.message, op=error.op, path=error.path, hint=error.hint) from error
    except ValueError as error:
        raise ConfigError(f"use {error}", op="read configuration", hint="name another path") from error


def _read(file: Path) -> Config:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"read configuration '{file}': {reason}",
            op="read configuration",
            path=file,
            hint="name a file that you may read with --config; `ergo-capture config default` prints one",
        ) from error
    return _beside(file, parse(text, str(file)))


def _beside(file: Path, config: Config) -> Config:
    """Return the configuration with relative paths of adapters resolved against its file's directory."""
    graphs = {
        name: msgspec.structs.replace(graph, adapter=str(file.parent.absolute() / graph.adapter))
        if graph.adapter
        else graph
        for name, graph in config.graphs.items()
    }
    return msgspec.structs.replace(config, graphs=graphs)


def parse(text: str, name: str) -> Config:
    """Return the configuration that a TOML text describes.

    Args:
        text: the TOML.
        name: its name in errors, usually the file's path.

    Raises:
        ConfigError: it is not TOML, or a setting is unknown or invalid.
    """
    try:
        data = _with_engine_tables(tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"read configuration '{name}': {error}",
            op="read configuration",
            path=name,
            hint="correct the TOML at that place",
        ) from error
    try:
        return msgspec.convert(data, type=Config, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        first, *others = [
            ConfigError(f"read configuration '{name}': {message}", op="read configuration", path=name, hint=hint)
            for message, hint in mistakes(data)
        ]
        first.others = others
        raise first from error


def _with_engine_tables(data: dict[str, Any]) -> dict[str, Any]:
    """Replace ``engine = "KIND"`` by the table that it abbreviates."""
    graphs = data.get("graphs")
    if isinstance(graphs, dict):
        for graph in graphs.values():
            if isinstance(graph, dict) and isinstance(graph.get("engine"), str):
                graph["engine"] = {"kind": graph["engine"]}
    return data
