"""Files and directories that more people can reach than should: found by ``config check``.

The state directory holds what clients sent: directories are 0750 and files 0640 at the most. The configuration
holds no secret, but it says what the daemon runs: only its owner may write it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_WRITABLE_BY_OTHERS: Final = 0o022
#: Names of each kind that are looked at. Why not all: the check runs before each start, and a state directory may
#: hold millions of bundles.
MOST_LOOKED_AT: Final = 10_000


@dataclass(frozen=True, slots=True)
class LoosePath:
    """One thing that is too loose, with how many more there are of its kind."""

    path: Path
    mode: int
    #: The most it should be.
    most: int
    others: int = 0

    def __str__(self) -> str:
        more = f", and {self.others} more" if self.others else ""
        return f"'{self.path}' has mode {self.mode:04o}, {self.most:04o} at the most{more}"

    @property
    def hint(self) -> str:
        """What to do about it."""
        return f"chmod {self.most:o} '{self.path}'{' and the others' if self.others else ''}"


def loose_paths(state: Path, config: Path | None) -> list[LoosePath]:
    """What is too loose of the configuration file, of the state directory, and below it; the first of each kind."""
    found: list[LoosePath] = []
    if config is not None:
        mode = _mode(config)
        if mode is not None and mode & _WRITABLE_BY_OTHERS:
            found.append(LoosePath(config, mode, mode & ~_WRITABLE_BY_OTHERS))
    for most, paths in ((_DIRECTORY_MODE, _directories(state)), (_FILE_MODE, _files(state))):
        loose = [
            (path, mode) for path in islice(paths, MOST_LOOKED_AT) if (mode := _mode(path)) is not None and mode & ~most
        ]
        if loose:
            path, mode = loose[0]
            found.append(LoosePath(path, mode, most, len(loose) - 1))
    return found


def _directories(state: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(state):
        yield Path(directory)


def _files(state: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(state):
        for name in names:
            yield Path(directory, name)


def _mode(path: Path) -> int | None:
    """The permissions; None for what is not there, is not ours to look at, or is a link."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
