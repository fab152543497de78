"""Waiting for changes in a directory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ergo_capture.storage.watch import DirectoryWatch


def test_a_watch_returns_when_a_file_changes(tmp_path: Path) -> None:
    """It sleeps until then."""
    (tmp_path / "a").write_bytes(b"")
    with DirectoryWatch(tmp_path) as watch:
        assert watch.has_inotify
        writer = threading.Timer(0.05, lambda: (tmp_path / "a").write_bytes(b"1"))
        writer.start()
        watch.wait()
        assert (tmp_path / "a").read_bytes() == b"1"
        writer.join()


def test_a_watch_ends_when_the_reader_closes_its_pipe(tmp_path: Path) -> None:
    """It ends even while no file changes."""
    reader, writer = os.pipe()
    with DirectoryWatch(tmp_path, writer) as watch:
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            watch.wait()
    os.close(writer)


def test_a_watch_without_inotify_returns_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns after a quarter of a second."""
    monkeypatch.setattr("ergo_capture.storage.watch._inotify", lambda _directory: None)
    with DirectoryWatch(tmp_path) as watch:
        assert not watch.has_inotify
        watch.wait()
