"""``verify --adapter`` and ``replay --adapter`` of a daemon's captures: rotated, refused, killed, still running."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import DaemonProcess, command_environment, short_directory
from tests.engine.counting import ADAPTER
from tests.shared import REPOSITORY

from ergo_capture.cli import app
from ergo_capture.client import CaptureClient

Capture = pytest.CaptureFixture[str]
ENGINE = ["--engine", "python:tests.engine.counting:add"]


@dataclass
class Places:
    """A state directory, the adapter's file, and sessions in it."""

    state: Path
    adapter: Path
    #: Rotated, with refused events, killed and taken up again, and closed.
    closed: str
    #: Still open when the daemon was killed.
    going_on: str
    #: Decided by a run elsewhere.
    elsewhere: str


def line(event_id: str, n: float, kind: str = "add") -> bytes:
    """Return an event frame."""
    event = {"event_id": event_id, "kind": "Command", "at": {"secs": 0, "nanos": 0}, "semantic_kind": kind}
    return json.dumps({"type": "event", "event": event | {"payload": {"n": n}}}).encode() + b"\n"


async def _stream(daemon: DaemonProcess, *, close: bool, kills: int = 0, **options: Any) -> str:
    async with CaptureClient(daemon.socket, window=4, give_up_after=60) as client:
        session = await client.open("default", **options)
        for number in range(40):
            # From 101 on the store's total breaks the schema of what reads it.
            n = 60 if number in (20, 21) else -60 if number == 24 else 1
            await client.send_line(line(f"e{number}", n, "plain" if number % 7 == 3 else "add"), f"e{number}")
            if kills and number in (10, 23):
                await asyncio.to_thread(daemon.kill)
                await asyncio.to_thread(daemon.start)
        await client.flush()
        if close:
            await client.close()
    return session


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    """Have a daemon capture the sessions, and kill it."""
    with short_directory() as place:
        adapter = place / "adapter.yaml"
        adapter.write_text(ADAPTER)
        config = f'[rotation]\nmax_events = 8\n[graphs.default]\nadapter = "{adapter}"\n'
        config += 'engine = { kind = "python", callable = "tests.engine.counting:add" }\n'
        # The engine is in the tests, and the command does not look into the current directory.
        environment = command_environment()
        environment["PYTHONPATH"] = os.pathsep.join((environment.get("PYTHONPATH", ""), str(REPOSITORY)))
        with DaemonProcess(place, place / "state", config=config, environment=environment) as daemon:
            daemon.start()
            closed = asyncio.run(_stream(daemon, close=True, kills=2))
            going_on = asyncio.run(_stream(daemon, close=False))
            elsewhere = asyncio.run(_stream(daemon, close=True, decided_by="fixed"))
            daemon.kill()
        yield Places(place / "state", adapter, closed, going_on, elsewhere)


def told(arguments: list[str], places: Places, capsys: Capture, code: int = 0) -> list[dict[str, Any]]:
    """Return the JSON that is printed for each part."""
    options = ["--state-dir", str(places.state), "--adapter", str(places.adapter), "--json"]
    assert app.run([*arguments, *options]) == code, capsys.readouterr()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("command", [["verify"], ["replay", *ENGINE], ["replay", *ENGINE, "--jobs", "2"]], ids=" ".join)
def test_the_parts_of_a_session_keep_their_adapter(command: list[str], places: Places, capsys: Capture) -> None:
    """Each part is proved by the kinds of its events; refusals are noted at their places."""
    found = told([*command, places.closed], places, capsys)
    assert len(found) > 2
    assert {part["adapter"]["merged"] for part in found} == {"proved"}
    assert {part["adapter"]["kinds"] for part in found} == {"known"}
    assert sum(part["adapter"]["merged_events"] for part in found) > 20
    notes = [note for part in found for note in part["notes"]]
    assert notes
    assert all("refused" in note and "total" in note for note in notes)


@pytest.mark.parametrize("command", [["verify"], ["replay", *ENGINE]], ids=" ".join)
def test_the_parts_of_a_session_that_goes_on_do_so_too(command: list[str], places: Places, capsys: Capture) -> None:
    """A part that is only in the journal begins with the store of its ROTATE frame."""
    found = told([*command, places.going_on], places, capsys)
    in_journal = [part for part in found if "journal" in part["bundle"]]
    assert in_journal
    assert {part["adapter"]["store"] for part in found} == {"known"}
    assert all(part["adapter"]["problem"] is None for part in found)


def test_the_last_part_stands_on_its_own(places: Places, capsys: Capture) -> None:
    """Its manifest holds the store at its beginning."""
    (last,) = sorted((places.state / "bundles" / "default").glob(f"{places.closed}~3.capture.json"))
    (found,) = told(["verify", str(last)], places, capsys)
    assert found["adapter"]["merged"] == "proved"


@pytest.mark.parametrize("command", [["verify"], ["replay", *ENGINE[:1], "fixed"]], ids=" ".join)
def test_what_was_decided_elsewhere_is_as_it_was_sent(command: list[str], places: Places, capsys: Capture) -> None:
    """The external run merged the payloads; only the provenance is compared."""
    for part in told([*command, places.elsewhere], places, capsys):
        assert any("as they were sent" in note for note in part["notes"])
        assert "adapter" not in part
