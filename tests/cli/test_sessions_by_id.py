"""``verify``, ``replay`` and ``report`` of a session by its id, while it goes on and when it is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import store
from tests.daemons import DaemonProcess, plain, running_daemon, short_directory
from tests.engine.engines import command_event

from ergo_capture.bundle.names import BUNDLE_SUFFIX
from ergo_capture.cli import app
from ergo_capture.client import CaptureClient

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, tuple[Path, str]]]:
    """Return the state directories of a session that is closed, and of one that goes on, with the sessions' ids."""
    with short_directory() as place:
        found: dict[str, tuple[Path, str]] = {}
        for how in ("closed", "open"):
            (place / how).mkdir()
            with DaemonProcess(place / how, place / how / "state") as daemon:
                daemon.start()
                session = asyncio.run(_stream(daemon.socket, close=how == "closed"))
                daemon.kill()
            found[how] = place / how / "state", session
        yield found


async def _stream(socket: Path, *, close: bool) -> str:
    async with CaptureClient(socket) as client:
        session = await client.open("default")
        for number in range(50):
            await client.send(command_event(f"e{number}", number))
        await client.flush()
        if close:
            await client.close()
    return session


@pytest.mark.parametrize("how", ["closed", "open"])
@pytest.mark.parametrize("arguments", [["verify"], ["replay", "--engine", "fixed"], ["replay"]], ids=" ".join)
def test_a_session_is_proved_by_its_id(
    arguments: list[str], how: str, places: dict[str, tuple[Path, str]], capsys: Capture
) -> None:
    """It is proved from its bundle, or from the journal as far as it is decided."""
    state, session = places[how]
    assert app.run([*arguments, session, "--state-dir", str(state), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert session in found["bundle"]
    assert 0 < found["decisions"] <= 50


@pytest.mark.parametrize("how", ["closed", "open"])
def test_a_session_is_drawn_by_its_id(
    how: str, places: dict[str, tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The page is written to the current directory: the state directory belongs to the daemon."""
    state, session = places[how]
    monkeypatch.chdir(tmp_path)
    assert app.run(["report", session, "--state-dir", str(state)]) == 0
    assert capsys.readouterr().out.startswith(f"{session}.html (")
    assert (tmp_path / f"{session}.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["verify", "replay", "report"])
def test_an_unknown_session_is_an_error(command: str, tmp_path: Path, capsys: Capture) -> None:
    """The state directory is named."""
    (tmp_path / "journal").mkdir()
    assert app.run([command, "nobody", "--state-dir", str(tmp_path)]) == 1
    assert f"nor, in '{tmp_path}', a session" in plain(capsys.readouterr().err)


def test_only_the_bundles_of_the_session_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Of others only the names are read: there may be many thousands."""
    for name in ("S", "S~2", "S~2~2", "S~x", "S2", "other"):
        store(tmp_path, name)
    looked: list[str] = []
    is_file = Path.is_file

    def look(path: Path, **options: Any) -> bool:
        looked.append(path.name)
        return is_file(path, **options)

    monkeypatch.setattr(Path, "is_file", look)
    assert app.run(["verify", "S", "--state-dir", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert {name for name in looked if name.endswith(BUNDLE_SUFFIX)} == {
        "S.capture.json",
        "S~2.capture.json",
        "S~2~2.capture.json",
    }


async def test_paths_of_bundles_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's state directory is relative; a client need not be in the directory where the daemon was started."""
    monkeypatch.chdir(tmp_path)
    async with running_daemon(state=Path("state")) as daemon, CaptureClient(daemon.socket) as client:
        await client.open("default")
        published = await client.close()
    assert Path(published.bundle).parent == tmp_path / "state" / "bundles" / "default"
    assert Path(published.manifest).is_absolute()
