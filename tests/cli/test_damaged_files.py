"""No command ends with a traceback, whatever a bundle, its manifest, its seal or a segment of the journal holds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import DaemonProcess, short_directory
from tests.processes import SOAK_SECONDS

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.cli import app
from ergo_capture.client import CaptureClient

CONFIG = """
[journal]
segment_bytes = "64KiB"
[seal]
key = "{key}"
[verify]
after_publish = "never"
[graphs.default]
max_per_window = 3
rate_window = "10s"
"""
#: S is the session's id, B the path of its bundle, J that of a segment.
COMMANDS = [
    "doctor st",
    "doctor st --json",
    "doctor B",
    "recover st -o out",
    "recover B -o out.capture.json",
    "bundles list st",
    "bundles list st --json",
    "bundles prune --state-dir st --max-bundles 1 --dry-run",
    "verify st",
    "verify B --json",
    "replay B --engine fixed",
    "replay B",
    "simulate B",
    "info S --state-dir st",
    "info B --json",
    "info B --fast",
    "cat S --state-dir st",
    "cat B --json",
    "tail S --state-dir st",
    "tail B",
    "diff B GOOD",
    "diff GOOD B --json",
    "report S --state-dir st -o out.html",
    "extract B",
    "extract B --as driver",
    "extract B --as fixture",
    "feed S --state-dir st",
    "intents B",
    "fleet export B -o out.parquet",
    "journal cat J",
    "journal cat J --no-bodies",
]
VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 1e308, 1 << 53, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30, 1.5, "", "a", "\0", "\ud800", "\x1b["),
    *([], {}, [[]], {"a": 1}, [0, 0], [256], [-1], {"secs": 1 << 63, "nanos": 999_999_999}, {"Failed": "x"}, "Pump"),
]  # fmt: skip


async def _capture(socket: Path) -> None:
    """Capture a session that is closed, and two that go on."""
    for graph, count, is_closed in (("default", 300, True), ("two", 20, False), ("default", 100, False)):
        async with CaptureClient(socket, window=512) as client:
            await client.open(graph, labels={"a": "b"})
            for number in range(count):
                kind = ExternalEventKind.Pump if number % 7 == 6 else ExternalEventKind.DataAvailable
                payload = b"" if kind is ExternalEventKind.Pump else b'{"n":%d}' % number
                await client.send(ExternalEvent.with_payload(f"e{number}", kind, EventTime(number, 0), payload))
            await (client.close() if is_closed else client.drain())


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """Yield the state directory of a daemon that was killed."""
    with short_directory() as place:
        key = place / "key"
        assert app.run(["seal", "keygen", "-o", str(key)]) == 0
        config = CONFIG.format(key=key) + "[graphs.two]\n"
        with DaemonProcess(place, place / "state", config=config) as daemon:
            daemon.start()
            asyncio.run(_capture(daemon.socket))
            daemon.kill()
        yield place / "state"


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside one."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def change_value(chance: random.Random, value: Any) -> None:
    """Change some of what a JSON object holds, and hash its payloads again."""
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        *above, key = chance.choice(list(_places(value)))
        holder = value
        for step in above:
            holder = holder[step]
        what = chance.random()
        if what < 0.7:
            holder[key] = json.loads(json.dumps(chance.choice(VALUES)))
        elif what < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, json.loads(json.dumps(holder[key])))
        else:
            holder[f"{key}x"] = holder.pop(key)
    for event in value["events"] if isinstance(value.get("events"), list) else ():
        if isinstance(event, dict) and _are_bytes(event.get("payload")):
            event["payload_hash"] = hashlib.sha256(bytes(event["payload"])).hexdigest()


def _are_bytes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 256 for each in value)


def change_bytes(chance: random.Random, data: bytes) -> bytes:
    """Return a file's bytes with some of them changed, cut off, taken out, put in or zeroed."""
    at, length = chance.randrange(len(data)), chance.choice([1, 16, 512])
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + chance.randbytes(length) + data[at:]
        case 3:
            return data[:at] + bytes(length) + data[at + length :]
        case 4:
            return data + data[-length:]
        case _:
            return data[:at] + chance.randbytes(1) + data[at + 1 :]


def damage(chance: random.Random, state: Path) -> None:
    """Damage one or two files of a state directory."""
    files = sorted(path for path in state.rglob("*.*") if path.is_file())
    for path in chance.sample(files, chance.choice([1, 1, 2])):
        data = path.read_bytes()
        if path.suffix == ".json" and chance.random() < 0.7:
            value = json.loads(data)
            change_value(chance, value)
            path.write_bytes(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
        elif chance.random() < 0.05:
            path.unlink()
        else:
            path.write_bytes(change_bytes(chance, data))


def run_commands(
    seed: int,
    number: int,
    state: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run so many of the commands on a damaged copy of a state directory."""
    chance = random.Random(seed)
    bundle = next((state / "bundles" / "default").glob("*.capture.json"))
    shutil.copytree(state, place / "st")
    shutil.copy(bundle, place / "good.capture.json")
    damage(chance, place / "st")
    monkeypatch.chdir(place)
    names = {
        "S": bundle.name.partition(".")[0],
        "B": f"st/bundles/default/{bundle.name}",
        "J": str(next(Path("st/journal").iterdir())),
        "GOOD": "good.capture.json",
    }
    for line in chance.sample(COMMANDS, number):
        arguments = [names.get(word, word) for word in line.split()]
        try:
            assert app.run(arguments) in {0, 1, 2, 3, 4}
        except Exception as error:
            raise AssertionError(f"seed {seed}: {line}") from error
        out = capsys.readouterr().out
        if line == "cat B --json":
            assert all(json.loads(text) for text in out.splitlines())
        for path in place.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("seed", range(60))
def test_no_command_ends_with_a_traceback(
    seed: int, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file is an answer with an exit code of its own, or is shown as it is."""
    run_commands(seed, 8, state, tmp_path, monkeypatch, capsys)


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_SECONDS + 300)
def test_no_command_ends_with_a_traceback_for_long(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The long version, with all commands."""
    first = int(time.time())
    until = time.monotonic() + SOAK_SECONDS
    for seed in range(first, first + 10**9):
        if time.monotonic() > until:
            return
        place = tmp_path / str(seed)
        place.mkdir()
        run_commands(seed, len(COMMANDS), state, place, monkeypatch, capsys)
        monkeypatch.undo()
        shutil.rmtree(place)
