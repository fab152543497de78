"""Default paths of the configuration file, the sockets and the state directory, and ``~`` in configured paths."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Final

SYSTEM_FILE: Final = Path("/etc/ergo-capture/config.toml")

_VARIABLE: Final = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def default_file() -> Path | None:
    """Return the configuration file that is read if none is named: the user's, else the system's, else None."""
    import platformdirs  # noqa: PLC0415 - only the daemon needs it

    candidates = [Path(platformdirs.user_config_path("ergo-capture")) / "config.toml", SYSTEM_FILE]
    return next((candidate for candidate in candidates if _may_exist(candidate)), None)


def _may_exist(file: Path) -> bool:
    try:
        return file.exists()
    except PermissionError:
        # A file that we may not see is not ignored; reading it will report the error.
        return True


def default_state_directory() -> Path:
    """Return systemd's state directory, else the system's for root, else the user's."""
    import platformdirs  # noqa: PLC0415 - only the daemon needs it

    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/ergo-capture")
    return Path(platformdirs.user_state_path("ergo-capture"))


def default_socket() -> Path:
    """Return the socket in systemd's runtime directory, else in the system's for root, else in the user's."""
    import platformdirs  # noqa: PLC0415 - only the daemon needs it

    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / "capture.sock"
    if os.geteuid() == 0:
        return Path("/run/ergo-capture/capture.sock")
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR (su, cron) platformdirs warns on standard error; the path is reported where it matters.
        warnings.simplefilter("ignore")
        return Path(platformdirs.user_runtime_path("ergo-capture")) / "capture.sock"


def control_socket_beside(socket: Path) -> Path:
    """Return the default control socket of the daemon with that socket.

    Its name depends on the socket's: two daemons may have their sockets in one directory.
    """
    return socket.with_name("control.sock" if socket.name == "capture.sock" else f"{socket.stem}.control.sock")


def expand_path(path: str) -> str:
    """Return a configured path with ``~`` and ``~user`` at its beginning replaced by the home directory.

    Raises:
        ValueError: there is no such home directory, or the path has an environment variable in it. Variables are not
            expanded: the daemon's environment is rarely that of the person who writes the file.
    """
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
