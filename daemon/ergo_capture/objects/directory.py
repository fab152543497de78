"""A directory as an object store: a mounted disk, a network file system, or a stand-in for a store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from ergo_capture.objects.port import ObjectInfo, ObjectMissing, StoreAway, StoreError, StoreRefused
from ergo_capture.storage.atomic import AtomicFile, create_parents
from ergo_capture.storage.port import hint_for
from ergo_capture.storage.write_error import CaptureWriteError

_READ_BYTES: Final = 1 << 20
#: Matches the name of a file that is being written, or was left by a killed process.
_TEMPORARY: Final = re.compile(r".+\.\d+\.\d+\.tmp")


class DirectoryStore:
    """Objects as files below a directory; each is written atomically and synced.

    Args:
        root: the directory, which must exist: nothing must be written below the mount point of a disk that is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()

    def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        """Write an object."""
        path = self._path(key)
        self._require_root("write", path)
        try:
            create_parents(path)
            with AtomicFile(path, what="object") as file:
                for block in blocks:
                    file.write(block)
                    file.write_back(8 << 20)
                assert file.bytes_written == size
                file.commit()
        except CaptureWriteError as error:
            raise _failed("write", path, error.cause if isinstance(error.cause, OSError) else error) from error

    def get(self, key: str) -> Iterator[bytes]:
        """Yield an object's content."""
        path = self._path(key)
        with self._opened(path) as file:
            try:
                while block := file.read(_READ_BYTES):
                    yield block
            except OSError as error:
                raise _failed("read", path, error) from error

    def _opened(self, path: Path) -> BinaryIO:
        try:
            return path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._require_root("read", path)
            raise ObjectMissing(f"read object '{path}': there is none", op="read object", path=path) from error
        except OSError as error:
            raise _failed("read", path, error) from error

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object."""
        path = self._path(key)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._require_root("look at", path)
            return None
        except OSError as error:
            raise _failed("look at", path, error) from error
        return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix."""
        self._require_root("list", self.root)
        yield from self._below(self._path(prefix) if prefix else self.root)

    def _below(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            # Sort a directory with a slash, as the keys of its files are sorted.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name + "/" * entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _failed("list", folder, error) from error
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                yield from self._below(path)
            elif not _TEMPORARY.fullmatch(entry.name):
                info = self.head(path.relative_to(self.root).as_posix())
                if info is not None:
                    yield info

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names of the directories below a prefix, sorted."""
        self._require_root("list", self.root)
        folder = self._path(prefix) if prefix else self.root
        try:
            return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise _failed("list", folder, error) from error

    def _path(self, key: str) -> Path:
        names = key.strip("/").split("/")
        if "" in names or "." in names or ".." in names or "\0" in key:
            raise ObjectMissing(f"find object '{key}': that is not a key", op="find object", path=key)
        return self.root.joinpath(*names)

    def _require_root(self, what: str, path: Path) -> None:
        if not self.root.is_dir():
            raise StoreRefused(
                f"{what} '{path}': there is no directory '{self.root}'",
                op=f"{what} object",
                path=self.root,
                hint="create it, or mount its file system",
            )


def _failed(what: str, path: Path, error: BaseException) -> StoreError:
    reason = getattr(error, "strerror", None) or str(error)
    kind = StoreRefused if isinstance(error, PermissionError) else StoreAway
    cause = error if isinstance(error, OSError) else error.__cause__
    hint = hint_for(cause) if isinstance(cause, OSError) else "check the file system there"
    return kind(f"{what} object '{path}': {reason}", op=f"{what} object", path=path, hint=hint)
