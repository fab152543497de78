"""Where the daemon's files are when nothing else is said."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Final

SYSTEM_FILE: Final = Path("/etc/ergo-capture/config.toml")


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
