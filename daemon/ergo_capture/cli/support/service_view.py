"""Compare the needs of a configuration with what systemd lets the installed service see and do.

``config check`` runs as an operator, who may see home directories and write to other places than the unit allows.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from ergo_capture.config import default_state_directory
from ergo_capture.config.graphs import EngineConfig, ProcessEngineConfig, ScriptedEngineConfig, SocketEngineConfig
from ergo_capture.config.settings import Config
from ergo_capture.engine.compilers import WAYS_OUT, compiler_of

UNIT: Final = "ergo-capture.service"
SHIP_UNIT: Final = "ergo-capture-ship.service"
_PROPERTIES: Final = (
    "LoadState", "ExecStart", "ProtectHome", "ProtectSystem", "PrivateTmp", "ReadWritePaths", "BindPaths",
    "StateDirectory", "NoExecPaths", "ExecPaths", "MemoryDenyWriteExecute",
)  # fmt: skip
_HOMES: Final = ("/home", "/root", "/run/user")
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 - nothing is written there
#: Hidden or not, these are not below ProtectSystem=strict.
_NOT_FILES: Final = ("/dev", "/proc", "/sys")
_MOVE: Final = "move it below /opt, /usr/local or /var/lib"


@dataclass(frozen=True)
class ServiceView:
    """The restrictions of a service on files and memory."""

    #: Directories that it cannot see.
    hidden: tuple[Path, ...]
    #: Directories that it may write to; None for no restriction.
    writable: tuple[Path, ...] | None
    #: Directories that it may execute programs from; None for no restriction.
    executable: tuple[Path, ...] | None
    #: Whether its memory may be both writable and executable.
    may_compile: bool

    def hides(self, path: Path) -> bool:
        """Return whether the service cannot see a path that exists."""
        return any(_below(path, self.hidden))

    def may_write(self, path: Path) -> bool:
        """Return whether systemd lets the service write there; permissions of files are not checked."""
        return self.writable is None or any(_below(path, (*self.writable, *map(Path, _NOT_FILES))))

    def may_execute(self, path: Path) -> bool:
        """Return whether systemd lets the service execute the file."""
        return self.executable is None or any(_below(path, self.executable))


def _below(path: Path, directories: tuple[Path, ...]) -> Iterator[bool]:
    """Yield for each directory whether the path, or its target if it is a link, is below it."""
    for directory in directories:
        yield path.is_relative_to(directory) or path.resolve().is_relative_to(directory)


def service_view(config: Path | None, unit: str = UNIT) -> ServiceView | None:
    """Return the view of an installed service; None if there is none, or if it has another configuration file."""
    if config is None:
        return None
    try:
        ran = subprocess.run(  # noqa: S603 - a fixed command
            ["systemctl", "show", *(f"--property={name}" for name in _PROPERTIES), unit],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    shown = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    if shown.get("LoadState") != "loaded" or f"--config {config}" not in shown.get("ExecStart", ""):
        return None
    return view_of(shown)


def view_of(shown: dict[str, str]) -> ServiceView:
    """Return the view of a unit from its properties, as ``systemctl show`` prints them."""
    home = shown.get("ProtectHome", "no")
    hidden = [*(_HOMES if home in ("yes", "tmpfs") else ()), *(_TEMPORARY if shown.get("PrivateTmp") == "yes" else ())]
    bound = [path.split(":")[0] for path in _words(shown.get("BindPaths", ""))]
    writable = None
    if shown.get("ProtectSystem") == "strict":
        state = [f"/var/lib/{name}" for name in _words(shown.get("StateDirectory", ""))]
        writable = tuple(Path(path.lstrip("-+")) for path in (*_words(shown.get("ReadWritePaths", "")), *bound, *state))
    executable = None
    if "/" in _words(shown.get("NoExecPaths", "")):
        executable = tuple(Path(path.lstrip("-+")) for path in _words(shown.get("ExecPaths", "")))
    visible = [path for path in hidden if path not in bound]
    return ServiceView(tuple(map(Path, visible)), writable, executable, shown.get("MemoryDenyWriteExecute") != "yes")


def _words(text: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(text)
    return text.split()


def service_warnings(config: Config, view: ServiceView) -> Iterator[tuple[str, str]]:
    """Yield what the service could not do, each with a hint."""
    directories = {}
    # The default is another one for an operator than for the service.
    if config.state.directory not in ("", str(default_state_directory())):
        directories["state.directory"] = Path(config.state.directory)
    if config.metrics.textfile:
        directories["metrics.textfile"] = Path(config.metrics.textfile).parent
    yield from _directory_warnings(directories, view, UNIT, "metrics")
    for name, graph in config.graphs.items():
        if graph.adapter and view.hides(Path(graph.adapter)):
            yield f"graph '{name}': the service {UNIT} cannot see '{graph.adapter}'", _MOVE
        found = [_engine_warnings(graph.engine, view)]
        found += [_command_warnings(channel.command, view) for channel in graph.egress.values()]
        for sentence, hint in chain.from_iterable(found):
            yield f"graph '{name}': {sentence}", hint


def ship_warnings(config: Config, view: ServiceView) -> Iterator[tuple[str, str]]:
    """Yield what the service that ships could not do, each with a hint."""
    directories = {}
    if config.state.directory not in ("", str(default_state_directory())):
        # Receipts are written beside the bundles.
        directories["state.directory"] = Path(config.state.directory, "bundles")
    if config.ship.textfile:
        directories["ship.textfile"] = Path(config.ship.textfile).parent
    for name, target in config.ship.targets.items():
        if target.url.startswith("file://"):
            directories[f"ship.targets.{name}.url"] = Path(target.url.removeprefix("file://"))
    yield from _directory_warnings(directories, view, SHIP_UNIT, "ship")


def _directory_warnings(
    directories: dict[str, Path], view: ServiceView, unit: str, topic: str
) -> Iterator[tuple[str, str]]:
    """Yield which directories a service cannot see or may not write to, by the settings that name them."""
    for setting, directory in directories.items():
        if view.hides(directory):
            yield f"{setting}: the service {unit} cannot see '{directory}'", _MOVE
        elif not view.may_write(directory):
            drop_in = f"/etc/systemd/system/{unit}.d/paths.conf"
            hint = f"write `ReadWritePaths={directory}` below `[Service]` in {drop_in}; see `ergo-capture help {topic}`"
            yield f"{setting}: the service {unit} may not write to '{directory}'", hint


def _engine_warnings(engine: EngineConfig, view: ServiceView) -> Iterator[tuple[str, str]]:
    match engine:
        case ScriptedEngineConfig():
            yield from _hidden(Path(engine.file), view)
        case SocketEngineConfig() if not engine.path.startswith("@"):
            yield from _hidden(Path(engine.path), view)
        case ProcessEngineConfig():
            yield from _command_warnings(engine.command, view)


def _command_warnings(command: Sequence[str], view: ServiceView) -> Iterator[tuple[str, str]]:
    program = command[0] if command[0].startswith("/") else shutil.which(command[0])
    if program is not None and not view.hides(Path(program)) and not view.may_execute(Path(program)):
        yield (
            f"the service {UNIT} may not execute '{program}'",
            f"move it below /opt or /usr/local, or name it with ExecPaths= in /etc/systemd/system/{UNIT}.d",
        )
    compiler = compiler_of(command)
    if compiler and not view.may_compile:
        forbidden = "memory that is both writable and executable (MemoryDenyWriteExecute=)"
        yield f"'{compiler}' compiles at run time, and the service {UNIT} may have no {forbidden}", WAYS_OUT
    if program is not None:
        yield from _hidden(Path(program), view)
    for word in command[1:]:
        if word.startswith("/") and os.path.lexists(word):
            yield from _hidden(Path(word), view)


def _hidden(path: Path, view: ServiceView) -> Iterator[tuple[str, str]]:
    if view.hides(path):
        yield f"the service {UNIT} cannot see '{path}'", _MOVE
