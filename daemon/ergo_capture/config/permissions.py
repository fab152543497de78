"""Find files and directories with too wide permissions, for ``config check``.

The state directory holds the clients' data: its directories may have at most mode 0750, and its files 0640. The
configuration holds no secret but names the programs that the daemon runs: only its owner may write it.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_WRITABLE_BY_OTHERS: Final = 0o022
#: How many files, and directories, are checked: the check runs before each start, and a state directory may hold
#: millions of bundles.
_MAX_CHECKED: Final = 10_000


@dataclass(frozen=True, slots=True)
class LoosePath:
    """A path with too wide permissions; there are ``others`` more of its kind."""

    path: Path
    mode: int
    #: The widest mode that is accepted.
    allowed: int
    others: int = 0

    def __str__(self) -> str:
        more = f", and {self.others} more" if self.others else ""
        return f"'{self.path}' has mode {self.mode:04o}, {self.allowed:04o} at the most{more}"

    @property
    def hint(self) -> str:
        """The command that corrects it."""
        return f"chmod {self.allowed:o} {shlex.quote(str(self.path))}{' and the others' if self.others else ''}"


def loose_paths(state: Path, config: Path | None) -> list[LoosePath]:
    """Return the first path of each kind whose permissions are too wide: configuration, directories, files.

    Args:
        state: the state directory, which need not exist.
        config: the configuration file, if there is one.
    """
    found: list[LoosePath] = []
    if config is not None:
        mode = _mode(config)
        if mode is not None and mode & _WRITABLE_BY_OTHERS:
            found.append(LoosePath(config, mode, mode & ~_WRITABLE_BY_OTHERS))
    for allowed, paths in ((_DIRECTORY_MODE, _directories(state)), (_FILE_MODE, _files(state))):
        loose = [
            (path, mode)
            for path in islice(paths, _MAX_CHECKED)
            if (mode := _mode(path)) is not None and mode & ~allowed
        ]
        if loose:
            path, mode = loose[0]
            found.append(LoosePath(path, mode, allowed, len(loose) - 1))
    return found


def _directories(state: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(state):
        yield Path(directory)


def _files(state: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(state):
        for name in names:
            yield Path(directory, name)


def _mode(path: Path) -> int | None:
    """Return the permissions; None for a symbolic link, and if they cannot be read."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
