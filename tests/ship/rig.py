"""State directories with bundles, targets, and what tests ask of both."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import anyio
import msgspec
from tests.bundles import small_bundle, store
from tests.daemons import COMMAND, PATIENCE, command_environment

from ergo_capture import encode_bundle
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.names import bundle_stem, manifest_path
from ergo_capture.bundle.receipt import Receipts, place_of, read_receipt, receipt_path
from ergo_capture.config.shipping import ShipConfig, TargetConfig
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.keys import decode_shipped_manifest
from ergo_capture.objects.port import ObjectStore
from ergo_capture.ship.sending import Sender
from ergo_capture.ship.shipper import Shipper
from ergo_capture.units import Duration

HOST = "host-1"
TARGET = "archive"


def fill(state: Path, count: int, *, begin: int = 0, events: int = 2) -> list[Path]:
    """Write finished bundles with different texts into a state directory; half of them compressed."""
    return [
        store(
            state,
            f"S{number}",
            text=encode_bundle(small_bundle(f"g{number}", events)),
            compress=number % 2 == 1,
            now=datetime.now(UTC),
            sequence=number + 1,
        )
        for number in range(begin, begin + count)
    ]


def listed(state: Path) -> list[StoredBundle]:
    """Return the bundles of a state directory."""
    return Catalogue(state / "bundles").read()


def one(state: Path) -> StoredBundle:
    """Return the one bundle of a state directory."""
    (bundle,) = listed(state)
    return bundle


def directory_target(root: Path, **fields: Any) -> TargetConfig:
    """Return the settings of a target in a directory, which is made."""
    root.mkdir(exist_ok=True)
    return TargetConfig(url=root.as_uri(), **fields)


def sender_to(root: Path, kind: type[DirectoryStore] = DirectoryStore, **options: Any) -> Sender:
    """Return a sender to a directory."""
    target = directory_target(root)
    return Sender(kind(root), TARGET, place_of(target), HOST, **options)


def shipper_to(target: TargetConfig, state: Path, **settings: Any) -> Shipper:
    """Return a shipper that looks and tries again soon."""
    ship = ShipConfig(interval=Duration(100_000_000), back_off_limit=Duration(1_000_000_000), **settings)
    return Shipper(TARGET, target, ship, Catalogue(state / "bundles").read, HOST)


@asynccontextmanager
async def running(shipper: Shipper) -> AsyncIterator[Shipper]:
    """Run a shipper."""
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        shipper.stop()
        await asyncio.wait_for(task, PATIENCE)


async def until(condition: Any) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)


def held(state: Path, target: TargetConfig) -> list[StoredBundle]:
    """Return the bundles with valid receipts."""
    receipts = Receipts({TARGET: place_of(target)})
    return [bundle for bundle in listed(state) if receipts.holders(bundle)]


def assert_shipped(state: Path, target: TargetConfig, there: ObjectStore) -> None:
    """Assert that every bundle has a valid receipt, and that the store has exactly what it says."""
    bundles = listed(state)
    assert [bundle.path for bundle in held(state, target)] == [bundle.path for bundle in bundles]
    assert_receipts_are_true(state, there)


def assert_receipts_are_true(state: Path, there: ObjectStore) -> int:
    """Assert that whatever has a receipt is in the store, byte for byte; return how many there are."""
    count = 0
    for bundle in listed(state):
        receipt = read_receipt(receipt_path(bundle.path, TARGET))
        if receipt is None:
            continue
        count += 1
        text, manifest = bundle.path.read_bytes(), manifest_path(bundle.path).read_bytes()
        assert b"".join(there.get(receipt.key)) == text, bundle.path
        assert hashlib.sha256(text).hexdigest() == receipt.file_sha256
        about = decode_shipped_manifest(b"".join(there.get(receipt.manifest_key)))
        assert (about.host, about.key) == (HOST, receipt.key)
        assert about.manifest == msgspec.json.decode(manifest)
        assert bundle_stem(bundle.path) in receipt.manifest_key
    return count


class ShipProcess:
    """``ergo-capture ship run`` as a process."""

    def __init__(self, place: Path, state: Path, text: str) -> None:
        self.config = place / "ship.toml"
        self.log = place / "ship.log"
        self.state = state
        self.configure(text)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, text: str) -> None:
        """Write the configuration."""
        whole = f'[state]\ndirectory = "{self.state}"\n[ship]\nhost = "{HOST}"\ninterval = "100ms"\nback_off_limit = "1s"\n{text}'
        self.config.write_text(whole)

    def start(self, name: str = "ship.ready") -> Self:
        """Start it, and wait for a line of its log."""
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "ship", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=command_environment(),
            )
        self.until_logged(name)
        return self

    def lines(self) -> list[dict[str, Any]]:
        """Return the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def until_logged(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for so many lines of a name, and return the last."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = [line for line in self.lines() if line["event"] == name]
            if len(found) >= count:
                return found[count - 1]
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"{name} not logged:\n{self.log.read_text()}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """Send SIGTERM; return the exit code. It has 5 seconds."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)


@contextmanager
def ship_process(place: Path, state: Path, text: str) -> Iterator[ShipProcess]:
    """Run the service; kill it at the end if it still runs."""
    service = ShipProcess(place, state, text)
    try:
        yield service.start()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


def table_of(target: TargetConfig, name: str = TARGET) -> str:
    """Return a target's table of the configuration."""
    lines = [f"{key} = {json.dumps(str(value))}" for key, value in msgspec.structs.asdict(target).items() if value]
    return "\n".join([f"[ship.targets.{name}]", *lines, ""])
