"""Default paths of the configuration file, the sockets and the state directory, and ``~`` in configured paths."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

SYSTEM_FILE: Final = Path("/etc/ergo-capture/config.toml")
SYSTEM_STATE: Final = Path("/var/lib/ergo-capture")
SYSTEM_RUNTIME: Final = Path("/run/ergo-capture")

_VARIABLE: Final = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def default_file() -> Path | None:
    """Return the configuration file that is read if none is named: the user's, else the system's, else None."""
    users = _user_directory("config")
    candidates = [SYSTEM_FILE] if users is None else [users / "config.toml", SYSTEM_FILE]
    return next((candidate for candidate in candidates if _may_exist(candidate)), None)


def _may_exist(file: Path) -> bool:
    try:
        return file.exists()
    except PermissionError:
        # Do not ignore a file that this user may not see: reading it reports the error.
        return True


def default_state_directory() -> Path:
    """Return systemd's state directory, else the user's; the system's for root and for users without a home directory."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    users = None if os.geteuid() == 0 else _user_directory("state")
    return users or SYSTEM_STATE


def default_socket() -> Path:
    """Return the socket in systemd's runtime directory, else in the system's for root, else in the user's."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / "capture.sock"
    users = None if os.geteuid() == 0 else _user_directory("runtime")
    return (users or SYSTEM_RUNTIME) / "capture.sock"


def cache_directory() -> Path:
    """Return the user's directory for cached files; the system's for users without a home directory."""
    return _user_directory("cache") or Path("/var/cache/ergo-capture")


def _user_directory(kind: str) -> Path | None:
    """Return the user's directory for files of a kind; None if the user has no home directory, as in many containers."""
    import platformdirs  # noqa: PLC0415 - slow to import, and needed only for default paths

    place: Callable[[str], Path] = getattr(platformdirs, f"user_{kind}_path")
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR (su, cron) platformdirs warns on standard error; the path is reported where it matters.
        warnings.simplefilter("ignore")
        try:
            path = place("ergo-capture")
        except RuntimeError:
            return None
    # Older versions of platformdirs return `~/...` then.
    return path if path.is_absolute() else None


def find_socket() -> Path:
    """Return the default socket of the user's own daemon if there is one, else that of the system's service."""
    own, systems = default_socket(), SYSTEM_RUNTIME / "capture.sock"
    return systems if not os.path.lexists(own) and os.path.lexists(systems) else own


def find_state_directory() -> Path:
    """Return the default state directory of the user's own daemon if there is one, else that of the system's service."""
    own = default_state_directory()
    return SYSTEM_STATE if not os.path.lexists(own) and os.path.lexists(SYSTEM_STATE) else own


def control_socket_beside(socket: Path) -> Path:
    """Return the default control socket of the daemon with that socket.

    Its name depends on the socket's: two daemons may have their sockets in one directory.
    """
    return socket.with_name("control.sock" if socket.name == "capture.sock" else f"{socket.stem}.control.sock")


def expand_path(path: str) -> str:
    """Return a configured path with ``~`` and ``~user`` at its beginning replaced by the home directory.

    Raises:
        ValueError: there is no such home directory, the path has an environment variable in it, or it is not UTF-8.
            Variables are not expanded, because the daemon's environment is rarely that of the author of the file.
            Manifests, replies and the status are JSON, which cannot hold other text than Unicode.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{path}': it is not UTF-8; rename it, or name another path") from None
    variable = _VARIABLE.search(path)
    if variable:
        raise ValueError(f"'{path}': `{variable[0]}` is not expanded; write the path in full, or begin it with `~`")
    return expand_home(path)


def expand_home(path: str) -> str:
    """Return the path with ``~`` and ``~user`` at its beginning replaced by the home directory.

    Raises:
        ValueError: there is no such home directory.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise ValueError(f"'{path}': there is no home directory for `{user}`; write the path in full") from error
