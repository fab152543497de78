"""A client, when the daemon's state directory is older than what was acknowledged; with real processes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, DaemonProcess, command, command_environment, event, short_directory
from tests.processes import wait_until

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, decode_bundle
from ergo_capture.bundle.manifest import Manifest, read_manifest
from ergo_capture.client import Acknowledged, CaptureClient, ClientError
from ergo_capture.journal.frame import HEADER_BYTES, decode_header

STAY = '[session]\nlinger = "1h"\n'
#: Events that are acknowledged before the copy is made, and in all.
BEFORE, ALL = 600, 1000


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """Run a daemon that keeps sessions open for as long as a test lasts."""
    with short_directory() as place, DaemonProcess(place, place / "state", config=STAY) as running:
        yield running.start()


def numbered(number: int) -> ExternalEvent:
    """Return event e<number>."""
    return ExternalEvent.mechanical_at(f"e{number}", ExternalEventKind.Command, EventTime(number, 0))


async def stream(client: CaptureClient, first: int, last: int) -> None:
    """Send events, and wait until they are acknowledged."""
    for number in range(first, last + 1):
        await client.send(numbered(number))
    await client.drain()


def copy_of(daemon: DaemonProcess) -> Path:
    """Copy the state directory of a running daemon, as a snapshot of its disk would."""
    return Path(shutil.copytree(daemon.state, daemon.state.with_name("copy")))


def restore(daemon: DaemonProcess, copy: Path) -> None:
    """Put the copy in the place of the state directory."""
    shutil.rmtree(daemon.state)
    shutil.move(copy, daemon.state)


def zero_last_batches(journal: Path, count: int) -> None:
    """Overwrite the last batches with zeros, as a disk does that lied about syncs."""
    (segment,) = journal.iterdir()
    data = bytearray(segment.read_bytes())
    starts: dict[int, int] = {}
    offset = 0
    while (
        header := decode_header(bytes(data[offset : offset + HEADER_BYTES]), int(segment.name.partition(".")[0]))
    ) is not None:
        starts.setdefault(header.batch, offset)
        offset += header.size
    assert len(starts) > count
    start = starts[sorted(starts)[-count]]
    data[start:] = bytes(len(data) - start)
    segment.write_bytes(data)


def empty(daemon: DaemonProcess, _copy: Path) -> None:
    """Remove the whole state directory's content."""
    shutil.rmtree(daemon.state)


def zeroed(daemon: DaemonProcess, _copy: Path) -> None:
    """Lose the last eleven synced batches."""
    zero_last_batches(daemon.state / "journal", 11)


LOSSES = pytest.mark.parametrize("lose", [restore, zeroed, empty], ids=["restored", "zeroed", "empty"])


def manifests(state: Path) -> list[Manifest]:
    """Return all manifests."""
    return [read_manifest(path) for path in sorted((state / "bundles").rglob("*.manifest.json"))]


def held_ids(state: Path) -> set[str]:
    """Return the ids of all events in bundles."""
    found = (state / "bundles").rglob("*.capture.json")
    return {record.event_id for path in found for record in decode_bundle(path.read_bytes()).events}


async def stream_and_lose(
    daemon: DaemonProcess, client: CaptureClient, lose: Callable[[DaemonProcess, Path], None]
) -> None:
    """Have all events acknowledged, kill the daemon, and restore an older state."""
    await client.open("default")
    await stream(client, 1, BEFORE)
    copy = copy_of(daemon)
    for number in range(BEFORE, ALL, 20):
        await stream(client, number + 1, number + 20)
    assert client.acknowledged == Acknowledged(ALL, f"e{ALL}")
    daemon.kill()
    lose(daemon, copy)


@LOSSES
async def test_a_client_is_told_of_lost_events_and_ends(
    daemon: DaemonProcess, lose: Callable[[DaemonProcess, Path], None]
) -> None:
    """The error says how many are lost, and from which id on."""
    async with CaptureClient(daemon.socket, give_up_after=60) as client:
        await stream_and_lose(daemon, client, lose)
        await asyncio.to_thread(daemon.start)
        with pytest.raises(ClientError) as caught:
            await client.close()
        assert caught.value.code == "acknowledged_lost"
        assert caught.value.exit_code == 3
        lost = caught.value.lost
        assert lost is not None
        assert lost.acknowledged == ALL
        assert lost.held < ALL
        assert str(ALL - lost.held) in caught.value.message
        assert lost.last_event_id == (f"e{lost.held}" if lost.held else None)
        assert f"e{lost.held or ALL}" in caught.value.message
    assert all(manifest.ended != "complete" for manifest in manifests(daemon.state))


@LOSSES
async def test_a_client_that_goes_on_after_a_loss_has_it_in_the_manifest(
    daemon: DaemonProcess, lose: Callable[[DaemonProcess, Path], None]
) -> None:
    """Events that it sends after the loss are in the bundle, after those that were held."""
    async with CaptureClient(daemon.socket, give_up_after=60, resume_after_loss=True) as client:
        await stream_and_lose(daemon, client, lose)
        # It is still held by the client: the daemon is down.
        await client.send(numbered(ALL + 1))
        await asyncio.to_thread(daemon.start)
        await stream(client, ALL + 2, ALL + 5)
        assert client.lost is not None
        held = client.lost.held
        assert client.lost.acknowledged == ALL
        assert client.acknowledged == Acknowledged(held + 5, f"e{ALL + 5}")
        published = await client.close()
    manifest = read_manifest(Path(published.manifest))
    assert manifest.lost is not None
    assert (manifest.lost.acknowledged, manifest.lost.held) == (ALL, held)
    events = decode_bundle(Path(published.bundle).read_bytes()).events
    expected = [*range(1, held + 1), *range(ALL + 1, ALL + 6)]
    assert [record.event_id for record in events] == [f"e{number}" for number in expected]


def raw(daemon: DaemonProcess, *frames: dict[str, Any]) -> list[dict[str, Any]]:
    """Send frames on a raw socket, and return every answer until the daemon ends the connection."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(daemon.socket))
        file = wire.makefile("rw")
        file.writelines(json.dumps(frame) + "\n" for frame in frames)
        file.flush()
        return [json.loads(line) for line in file]


HELLO = {"type": "hello", "protocol": "ergo-capture.v1"}


@LOSSES
def test_a_raw_client_that_says_what_it_was_told_is_told_what_is_gone(
    daemon: DaemonProcess, lose: Callable[[DaemonProcess, Path], None]
) -> None:
    """The error says what is lost, and after a resume the manifest says it too."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(daemon.socket))
        file = wire.makefile("rw")

        def until_acknowledged(first: int, last: int) -> int:
            for number in range(first, last + 1):
                file.write(json.dumps(event(f"e{number}", number)) + "\n")
            file.flush()
            while (answer := json.loads(file.readline())).get("events") != last:
                assert answer["type"] in ("welcome", "opened", "ack")
                session.append(answer.get("session"))
            events: int = answer["events"]
            return events

        session: list[Any] = []
        file.write(json.dumps(HELLO) + "\n" + json.dumps({"type": "open"}) + "\n")
        until_acknowledged(1, BEFORE)
        copy = copy_of(daemon)
        for number in range(BEFORE, ALL, 20):
            told = until_acknowledged(number + 1, number + 20)
        name = next(filter(None, session))
        daemon.kill()
    lose(daemon, copy)
    daemon.start()
    claim = {"type": "open", "session": name, "acknowledged": {"events": told, "last_event_id": f"e{told}"}}
    (*_, error) = raw(daemon, HELLO, claim)
    assert (error["type"], error["code"], error["lost"]["acknowledged"]) == ("error", "acknowledged_lost", told)
    (*_, closed) = raw(daemon, HELLO, claim | {"resume_after_loss": True}, {"type": "close"})
    assert closed["type"] == "closed"
    (manifest,) = manifests(daemon.state)
    assert manifest.lost is not None
    assert manifest.lost.held == len(held_ids(daemon.state)) == error["lost"]["held"] < told
    assert daemon.until_logged("session.lost")["acknowledged"] == told


async def test_a_daemon_that_holds_everything_takes_the_client_up_again(daemon: DaemonProcess) -> None:
    """A kill alone loses nothing."""
    async with CaptureClient(daemon.socket, give_up_after=60) as client:
        await client.open("default")
        await stream(client, 1, 50)
        daemon.kill()
        await client.send(numbered(51))
        await asyncio.to_thread(daemon.start)
        published = await client.close()
        assert client.reconnects >= 1
    assert (published.events, client.lost) == (51, None)
    assert read_manifest(Path(published.manifest)).lost is None


async def test_what_was_acknowledged_can_be_said_by_another_client(daemon: DaemonProcess) -> None:
    """A program that ends keeps its last acknowledgement, and states it when it opens the session again."""
    async with CaptureClient(daemon.socket) as client:
        session = await client.open("default")
        await stream(client, 1, 10)
        told = client.acknowledged
    async with CaptureClient(daemon.socket, give_up_after=10) as client:
        assert await client.open(session=session, acknowledged=told) == session
    async with CaptureClient(daemon.socket, give_up_after=10) as client:
        with pytest.raises(ClientError, match="1 acknowledged event"):
            await client.open(session=session, acknowledged=Acknowledged(11, "e11"))


def data_of_page(page: str) -> str:
    """Return the data that a report has packed."""
    (packed,) = re.findall(r"[A-Za-z0-9+/]{200,}={0,2}(?=<)", page)
    return zlib.decompress(base64.b64decode(packed)).decode()


def sender(daemon: DaemonProcess, *arguments: str) -> subprocess.Popen[str]:
    """Start ``send`` with a pipe for its events."""
    words = [*COMMAND, "send", "-", "--socket", str(daemon.socket), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=command_environment())


@pytest.mark.parametrize("goes_on", [False, True], ids=["ends", "goes on"])
def test_send_ends_with_exit_3_where_acknowledged_events_are_lost(daemon: DaemonProcess, *, goes_on: bool) -> None:
    """With ``--resume-after-loss`` it goes on, and still exits with 3."""
    with sender(daemon, *(["--resume-after-loss"] if goes_on else [])) as process:
        assert process.stdin is not None
        write = process.stdin.write

        def captured() -> int:
            ran = command("status", "--json", "--socket", str(daemon.socket))
            sessions = json.loads(ran.stdout)["running"]["sessions"]
            return sum(int(each["decided"]) for each in sessions)

        for number in range(1, 11):
            write(json.dumps(event(f"e{number}", number)) + "\n")
        process.stdin.flush()
        wait_until(lambda: captured() == 10)
        copy = copy_of(daemon)
        for number in range(11, 16):
            write(json.dumps(event(f"e{number}", number)) + "\n")
        process.stdin.flush()
        wait_until(lambda: captured() == 15)
        daemon.kill()
        restore(daemon, copy)
        daemon.start()
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 3, errors
        assert "5 acknowledged events" in errors
        assert "'e10'" in errors
        if goes_on:
            (manifest,) = manifests(daemon.state)
            assert manifest.lost is not None
            assert manifest.bundle in output
            listed = command("bundles", "list", "--state-dir", str(daemon.state)).stdout
            assert "complete, 5 lost" in listed
            bundle = output.split("\n")[-2]
            words = "5 of 15 acknowledged events, from behind 'e10' on"
            assert words in command("info", bundle).stdout
            assert json.loads(command("info", bundle, "--json").stdout)["manifest"]["lost"]["acknowledged"] == 15
            assert words in data_of_page(command("report", bundle, "-o", "-").stdout)
        else:
            assert "5 of 15 acknowledged events" in command("status", "--socket", str(daemon.socket)).stdout
            (running,) = json.loads(command("status", "--json", "--socket", str(daemon.socket)).stdout)["running"][
                "sessions"
            ]
            told = command("info", running["session"], "--state-dir", str(daemon.state))
            assert "5 of 15 acknowledged events" in told.stdout
