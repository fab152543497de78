"""A real S3 server behind a proxy that does harm: everything arrives, no receipt is false, nothing is sent without need."""

from __future__ import annotations

import hashlib
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bundles import small_bundle, store
from tests.daemons import short_directory
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.seaweed import Seaweed, seaweed
from tests.ship.rig import (
    ShipProcess,
    assert_receipts_are_true,
    assert_shipped,
    directory_target,
    fill,
    held,
    listed,
    running,
    ship_process,
    shipper_to,
    table_of,
    until,
)

from ergo_capture import encode_bundle
from ergo_capture.bundle.receipt import receipt_path
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.objects.keys import object_key
from ergo_capture.objects.opening import open_store
from ergo_capture.ship.shipper import Shipper


@pytest.fixture
def proxy(s3: Seaweed) -> Iterator[FaultProxy]:
    """Return a proxy before the server."""
    with fault_proxy(s3.ports["s3"]) as found:
        yield found


def behind(proxy: FaultProxy, server: Seaweed, timeout: str = "2s") -> TargetConfig:
    """Return a target of its own that is reached through the proxy."""
    return server.target(f"faults/{secrets.token_hex(4)}", endpoint=proxy.endpoint, timeout=timeout)


def first(count: int, fault: Fault, method: str) -> object:
    """Return a rule for a proxy: the first requests of a method suffer a fault."""
    left = [count]
    lock = threading.Lock()

    def decide(asked: str, _path: str) -> Fault | None:
        with lock:
            if asked != method or not left[0]:
                return None
            left[0] -= 1
            return fault

    return decide


async def ship_all(shipper: Shipper, count: int) -> None:
    """Run a shipper until so many bundles are shipped."""
    async with running(shipper):
        await until(lambda: shipper.counts.sent >= count)


#: Faults, the method they meet, how many requests suffer, and how many uploads of objects there may be beyond one for
#: each bundle: the client itself repeats a PUT whose answer it does not get, and must. It tries four times.
CASES = [
    (Fault.UNAVAILABLE, "PUT", 10, 0),
    (Fault.FORBIDDEN, "PUT", 3, 0),
    (Fault.RESET, "PUT", 10, 0),
    (Fault.LOST_ANSWER, "PUT", 10, 10),
    (Fault.HANG, "PUT", 2, 0),
    (Fault.FLIPPED_UP, "PUT", 3, 0),
    (Fault.UNAVAILABLE, "GET", 10, 0),
    (Fault.RESET, "GET", 10, 0),
    (Fault.LOST_ANSWER, "GET", 10, 0),
    (Fault.FLIPPED_DOWN, "GET", 3, 3),
]


@pytest.mark.parametrize(
    ("fault", "method", "count", "more"), CASES, ids=lambda value: getattr(value, "name", str(value))
)
async def test_everything_arrives_whatever_the_first_requests_suffer(
    tmp_path: Path, s3: Seaweed, proxy: FaultProxy, fault: Fault, method: str, count: int, more: int
) -> None:
    """Ten requests are more than the client tries by itself. What the store took is not sent again."""
    target = behind(proxy, s3)
    proxy.fault = first(count, fault, method)  # type: ignore[assignment]
    fill(tmp_path, 4)
    shipper = shipper_to(target, tmp_path, concurrency=2)
    await ship_all(shipper, 4)
    assert_shipped(tmp_path, target, open_store(target))
    uploads = proxy.count(lambda request: request.wrote_an_object)
    assert 4 <= uploads <= 4 + more


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RESET, Fault.LOST_ANSWER, Fault.FLIPPED_UP])
async def test_a_bundle_in_parts_arrives_whole(tmp_path: Path, s3: Seaweed, proxy: FaultProxy, fault: Fault) -> None:
    """If the answer to its last step is lost, the store is asked, and nothing is sent again."""
    target = behind(proxy, s3, timeout="10s")
    left = [5]

    def decide(method: str, path: str) -> Fault | None:
        is_last = method == "POST" and "uploadId=" in path
        is_meant = is_last if fault is Fault.LOST_ANSWER else method == "PUT" and "partNumber=" in path
        if not is_meant or not left[0]:
            return None
        left[0] -= 1
        return fault

    proxy.fault = decide
    text = encode_bundle(small_bundle("g", 2))
    store(tmp_path, "large", text=text[:-1] + b" " * (20 << 20) + b"\n")
    shipper = shipper_to(target, tmp_path)
    await ship_all(shipper, 1)
    assert_shipped(tmp_path, target, open_store(target))
    if fault is Fault.LOST_ANSWER:
        # One upload whose end was not known: the parts were sent once.
        assert proxy.count(lambda request: "partNumber=" in request.path) == 3


async def test_expired_credentials_are_refused_until_the_file_is_replaced(tmp_path: Path, s3: Seaweed) -> None:
    """They are read again for each attempt; no restart is needed."""
    path = tmp_path / "credentials"
    target = s3.target(f"expired/{secrets.token_hex(4)}", ("writer", "expired"), credentials=path)
    fill(tmp_path, 3)
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.failures["refused"] >= 2)
        assert held(tmp_path, target) == []
        path.write_text("AWS_ACCESS_KEY_ID=writer\nAWS_SECRET_ACCESS_KEY=writer-secret\n")
        await until(lambda: shipper.counts.sent == 3)
    assert_shipped(tmp_path, target, open_store(target))


def test_a_stop_ends_within_seconds_though_the_store_hangs(tmp_path: Path, s3: Seaweed, proxy: FaultProxy) -> None:
    """Its threads are left behind; the next start ships what has no receipt."""
    target = behind(proxy, s3, timeout="1m")
    proxy.fault = lambda _method, _path: Fault.HANG
    fill(tmp_path, 4)
    with ship_process(tmp_path, tmp_path, table_of(target)) as service:
        wait_until(lambda: len(proxy.requests) >= 4)
        began = time.monotonic()
        assert service.stop() == 0
        # Three seconds of grace; the rest is for a busy machine.
        assert time.monotonic() - began < 20
        proxy.fault = lambda _method, _path: None
        service.start().until_logged("ship.sent", 4)
        assert service.stop() == 0
    assert_shipped(tmp_path, target, open_store(target))


def wait_until(condition: object) -> None:
    """Wait until a condition holds."""
    from tests.processes import wait_until as wait

    wait(condition)  # type: ignore[arg-type]


class _Receipts:
    """The paths of receipts by the last name of the bundle's key."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._paths: dict[str, Path] = {}
        self._known: set[Path] = set()

    def get(self, name: str) -> Path | None:
        """Return the path of the receipt of the bundle with that key; it need not exist."""
        if name not in self._paths:
            for bundle in set(self._state.glob("bundles/*/*.capture.json*")) - self._known:
                key = object_key(hashlib.sha256(bundle.read_bytes()).hexdigest(), compressed=bundle.suffix == ".zst")
                self._paths[key.rpartition("/")[2]] = receipt_path(bundle, "archive")
                self._known.add(bundle)
        return self._paths.get(name)


def chaos(place: Path, count: int, large: int, kills: int, seed: int) -> tuple[int, int]:
    """Ship while shipper and server are killed and requests suffer; return bundles and uploads of objects.

    Args:
        place: a directory.
        count: bundles.
        large: bytes of one more.
        kills: how often the shipper is killed, and every third time the server.
        seed: of the random choices.
    """
    choose = random.Random(seed)
    state = place / "state"
    with seaweed() as server, fault_proxy(server.ports["s3"]) as proxy:
        target = server.target("chaos", endpoint=proxy.endpoint, timeout="5s")
        kinds = [
            Fault.UNAVAILABLE,
            Fault.FORBIDDEN,
            Fault.RESET,
            Fault.LOST_ANSWER,
            Fault.FLIPPED_UP,
            Fault.FLIPPED_DOWN,
        ]
        needless: list[str] = []

        def decide(method: str, path: str) -> Fault | None:
            name, is_write = path.partition("?")[0].rpartition("/")[2], method in ("PUT", "POST")
            receipt = receipts.get(name) if is_write and "/objects/" in path else None
            if receipt is not None and receipt.exists():
                needless.append(path)
            return choose.choice(kinds) if is_harmful.is_set() and choose.random() < 0.03 else None

        is_harmful, receipts = threading.Event(), _Receipts(state)
        is_harmful.set()
        proxy.fault = decide
        fill(state, count // 2)
        text = encode_bundle(small_bundle("large", 2))
        store(state, "large", text=text[:-1] + b" " * large + b"\n", sequence=100_000)
        with ship_process(place, state, table_of(target)) as service:
            for kill in range(kills):
                first, end = ((count // 2) + (count - count // 2) * step // kills for step in (kill, kill + 1))
                fill(state, end - first, begin=first)
                time.sleep(choose.uniform(0, 1.5))
                if kill % 3 == 1:
                    server.kill()
                    time.sleep(choose.uniform(0, 0.5))
                    server.start()
                service.kill()
                service.start()
                assert_receipts_are_true(state, open_store(server.target("chaos")))
            is_harmful.clear()
            finish(service, state, target)
            assert service.stop() == 0
        assert needless == []
        assert_shipped(state, target, open_store(server.target("chaos")))
        uploads = proxy.count(lambda request: request.wrote_an_object)
        lost = proxy.count(lambda request: request.wrote_an_object and request.fault is Fault.LOST_ANSWER)
        bundles = len(listed(state))
        # Needed again: what a killed shipper had in flight, answers that were lost, and objects that came back changed.
        flipped = proxy.count(lambda request: request.method == "GET" and request.fault is Fault.FLIPPED_DOWN)
        assert uploads <= bundles + 4 * kills + 4 * lost + flipped, (uploads, bundles, kills, lost, flipped)
        return bundles, uploads


def finish(service: ShipProcess, state: Path, target: TargetConfig) -> None:
    """Wait until everything is shipped."""
    deadline = time.monotonic() + 120
    while len(held(state, target)) < len(listed(state)):
        assert time.monotonic() < deadline, service.log.read_text()[-2000:]
        time.sleep(0.1)


@pytest.mark.timeout(180)
def test_nothing_is_lost_and_no_receipt_is_false_when_everything_is_killed() -> None:
    """The short form: four kills, and a bundle in parts."""
    with short_directory() as place:
        chaos(place, 20, 12 << 20, 4, 14)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_lost_in_the_long_run() -> None:
    """The long form: 500 bundles and one of 400 MB."""
    with short_directory() as place:
        chaos(place, 500, 400_000_000, 60, 7)


def test_the_metrics_are_in_a_file_while_the_service_runs(tmp_path: Path) -> None:
    """It is removed at the end: it would claim for ever what was true last."""
    fill(tmp_path, 2)
    text_file = tmp_path / "ship.prom"
    table = f'textfile = "{text_file}"\n{table_of(directory_target(tmp_path / "store"))}[metrics]\ninterval = "1s"\n'
    with ship_process(tmp_path, tmp_path, table) as service:
        service.until_logged("ship.sent", 2)
        wait_until(lambda: text_file.exists() and "ship_sent_total{" in text_file.read_text())
        wait_until(lambda: 'target="archive"} 2.0' in text_file.read_text())
        assert service.stop() == 0
    assert not text_file.exists()


def test_sighup_takes_over_another_target(tmp_path: Path, s3: Seaweed) -> None:
    """A configuration with an error changes nothing; one without is in force at once."""
    one, two = (s3.target(f"reload/{secrets.token_hex(4)}") for _ in range(2))
    fill(tmp_path, 3)
    with ship_process(tmp_path, tmp_path, table_of(one)) as service:
        service.until_logged("ship.sent", 3)
        service.configure("[ship.targets.X]\n")
        service.signal(signal.SIGHUP)
        service.until_logged("config.refused")
        service.configure(table_of(one) + table_of(two, "second"))
        service.signal(signal.SIGHUP)
        assert service.until_logged("config.reloaded")["targets"] == ["archive", "second"]
        assert service.until_logged("ship.sent", 6)["target"] == "second"
        assert service.stop() == 0
    assert_shipped(tmp_path, one, open_store(one))
