"""A storage that loses power: each page that was not synced is kept or lost.

Real files hold what a running process sees. Beside them the double keeps what a disk would hold: for each file the
contents as of its last sync and the pages that changed since; for each name whether the directory was synced since the
name was created, changed or removed. ``crash`` makes the real files what a disk might hold: any subset of the changed
pages, any of the sizes since the last sync, and the changes of names up to any one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from ergo_capture.storage import Buffer, RealFile, RealStorage

PAGE: Final = 4096


class PowerCut(BaseException):
    """The power is gone; nothing works until ``crash``."""


class _Contents:
    """A file, whatever its name."""

    def __init__(self) -> None:
        self.durable = b""
        self.changed: dict[int, None] = {}
        self.sizes: list[int] = []


class ForgetfulStorage(RealStorage):
    """Works on real files until the power goes."""

    def __init__(self) -> None:
        self._names: dict[Path, _Contents] = {}
        self._durable_names: dict[Path, _Contents] = {}
        self._pending_names: list[tuple[Path, _Contents | None]] = []
        self._files: list[_ForgetfulFile] = []
        self._until_cut: int | None = None
        #: Whether the power is gone.
        self.dead = False
        self.steps = 0

    # --- the power ---

    def cut_after(self, steps: int | None) -> None:
        """Lose power after ``steps`` further operations that change something; None: never."""
        self._until_cut = steps

    def step(self) -> None:
        """Count an operation that changes something; raise PowerCut where the power goes before it.

        Other threads are not counted: how far they are differs from run to run.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self.steps += 1
        if self.dead:
            raise PowerCut
        if self._until_cut is not None:
            if self._until_cut == 0:
                self.dead = True
                raise PowerCut
            self._until_cut -= 1

    def crash(self, random: Random, *, keep: float | None = None) -> None:
        """Make the files what a disk might hold now, and restore the power.

        Args:
            random: draws what is kept.
            keep: probability that a changed page is kept; None to draw that too.
        """
        chance = random.choice([0.0, 0.2, 0.5, 0.5, 0.8, 1.0]) if keep is None else keep
        held = dict(self._durable_names)
        for path, contents in self._pending_names[: random.randint(0, len(self._pending_names))]:
            if contents is None:
                held.pop(path, None)
            else:
                held[path] = contents
        volatile = {id(contents): path.read_bytes() for path, contents in self._names.items()}
        for file in self._files:
            file.abandon()
        self._files.clear()
        for path in self._names:
            path.unlink()
        self._names, self._durable_names, self._pending_names = {}, {}, []
        for path, before in held.items():
            data = _kept(before, volatile.get(id(before), before.durable), random, chance)
            path.write_bytes(data)
            contents = _Contents()
            contents.durable = data
            self._names[path] = self._durable_names[path] = contents
        self.dead, self._until_cut = False, None

    def adopt(self, path: Path) -> None:
        """Take a file that a test changed for durable as it is."""
        self._names[path] = self._durable_names[path] = contents = _Contents()
        contents.durable = path.read_bytes()

    # --- the filesystem ---

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> RealFile:
        """See ``Storage``."""
        if create:
            self.step()
        real = super().open(path, create=create, write=write)
        if create:
            self._names[path] = contents = _Contents()
            self._pending_names.append((path, contents))
        else:
            contents = self._names[path]
        fd, real._fd = real._fd, -1
        file = _ForgetfulFile(self, path, fd, contents)
        self._files.append(file)
        return file

    def replace(self, source: Path, destination: Path) -> None:
        """See ``Storage``."""
        self.step()
        super().replace(source, destination)
        contents = self._names[destination] = self._names.pop(source)
        self._pending_names += [(destination, contents), (source, None)]

    def remove(self, path: Path) -> None:
        """See ``Storage``."""
        self.step()
        super().remove(path)
        del self._names[path]
        self._pending_names.append((path, None))

    def sync_dir(self, path: Path) -> None:
        """See ``Storage``."""
        self.step()
        super().sync_dir(path)
        for name, contents in self._pending_names:
            if contents is None:
                self._durable_names.pop(name, None)
            else:
                self._durable_names[name] = contents
        self._pending_names.clear()


def _kept(contents: _Contents, volatile: bytes, random: Random, chance: float) -> bytes:
    size = random.choice([len(contents.durable), *contents.sizes])
    data = bytearray(contents.durable[:size].ljust(size, b"\0"))
    for page in contents.changed:
        part = volatile[page * PAGE : (page + 1) * PAGE]
        if random.random() < chance:
            data[page * PAGE : page * PAGE + len(part)] = part
    return bytes(data[:size])


class _ForgetfulFile(RealFile):
    def __init__(self, storage: ForgetfulStorage, path: Path, fd: int, contents: _Contents) -> None:
        super().__init__(path, fd)
        self._storage = storage
        self._contents = contents

    def _change(self, start: int, stop: int) -> None:
        for page in range(start // PAGE, -(-stop // PAGE)):
            self._contents.changed[page] = None

    def _hold(self) -> None:
        """Make the current contents durable."""
        self._contents.durable = super().read_at(0, self.size())
        self._contents.changed.clear()
        self._contents.sizes.clear()

    def write_at(self, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        if self._storage.dead:
            raise PowerCut
        super().write_at(buffers, offset)
        self._change(offset, offset + sum(map(len, buffers)))
        self._contents.sizes.append(self.size())
        # Counted after the write: a power cut before it is a power cut after the operation before it.
        self._storage.step()
        if sync:
            self.sync()

    def sync(self) -> None:
        self._storage.step()
        self._hold()

    def allocate(self, size: int) -> None:
        self._storage.step()
        before = self.size()
        super().allocate(size)
        self._change(before, size)
        self._contents.sizes += range(before, size, PAGE)
        self._contents.sizes.append(size)
        self._storage.step()
        self._hold()

    def truncate(self, size: int) -> None:
        self._storage.step()
        before = self.size()
        super().truncate(size)
        self._change(min(before, size), max(before, size))
        self._contents.sizes.append(size)
        self._storage.step()
        self._hold()

    def abandon(self) -> None:
        """Close the file without counting it."""
        super().close()
