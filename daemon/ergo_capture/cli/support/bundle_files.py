"""Find the bundle files that names on the command line stand for, and the manifests beside them."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import BUNDLE_SUFFIX, COMPRESSED_SUFFIX, manifest_path
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.errors import ErgoCaptureError, ExitCode

_SUFFIXES: Final = (BUNDLE_SUFFIX, BUNDLE_SUFFIX + COMPRESSED_SUFFIX)


def bundles_in(names: Iterable[str]) -> list[Path]:
    """Return the files that names stand for: each file, every bundle below a directory, the matches of a pattern.

    The files of each name are sorted; a file that several names stand for is returned once.

    Raises:
        ErgoCaptureError: a name is empty, or stands for no file.
        OSError: a directory cannot be read.
    """
    found: dict[Path, None] = {}
    for name in names:
        refuse_empty(name)
        path = Path(name)
        if path.is_dir():
            below = bundles_below(path)
        elif path.exists() or not glob.has_magic(name):
            below = [path]
        else:
            below = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 - it may be absolute
        if not below:
            raise ErgoCaptureError(
                f"find bundles: there is none at '{name}'",
                op="find bundles",
                path=name,
                hint=f"name bundle files, or directories that hold *{BUNDLE_SUFFIX}",
            )
        found |= dict.fromkeys(sorted(below))
    return list(found)


def bundles_below(directory: Path, is_wanted: Callable[[str], bool] = lambda _name: True) -> list[Path]:
    """Return every file below a directory that has the name of a bundle, sorted.

    Args:
        directory: the directory.
        is_wanted: whether a bundle is returned, by its name.

    Raises:
        OSError: a directory cannot be read.
    """
    named = list_files(directory, lambda name: name.endswith(_SUFFIXES) and is_wanted(name))
    # Leave out a pipe, which would block the reader. Keep a dangling link, because its bundle is missing.
    return [path for path in named if path.is_file() or not path.exists()]


def manifest_beside(path: Path) -> Manifest | None:
    """Return the manifest of a bundle; None if there is none, or if it cannot be read."""
    try:
        return read_manifest(manifest_path(path))
    except (ManifestError, OSError):
        return None


def refuse_empty(name: str) -> None:
    """Raise for an empty name, which is probably an unset variable: it would stand for the current directory."""
    if not name:
        raise ErgoCaptureError(
            "find bundles: a name is empty",
            op="find bundles",
            hint="is a variable of the shell not set? The current directory is '.'",
            exit_code=ExitCode.USAGE,
        )
