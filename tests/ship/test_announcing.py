"""Announcements of shipped bundles in a real stream: none is lost, none is false, whatever is down or killed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs
from tests.bundles import store
from tests.daemons import PATIENCE
from tests.nats_server import NatsServer, nats_server
from tests.ship.rig import (
    HOST,
    TARGET,
    directory_target,
    fill,
    listed,
    ship_process,
    shipper_to,
    table_of,
    until,
)

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.manifest import encode_manifest, read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.receipt import read_receipt, receipt_path
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig, TargetConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.ship import announcing as module
from ergo_capture.ship import jetstream
from ergo_capture.ship.announcement import subject_of
from ergo_capture.ship.announcing import Announcer
from ergo_capture.ship.probing import probe_stream
from ergo_capture.units import Duration

pytest.importorskip("nats")


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """Return a server without any stream."""
    with nats_server() as found:
        yield found


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """Return the lines of the log."""
    structlog.reset_defaults()
    with capture_logs() as found:
        yield found


def named(lines: list[Any], *names: str) -> list[str]:
    """Return the lines with these names, in order."""
    return [line["event"] for line in lines if line["event"] in names]


def announcer_to(url: str, target: TargetConfig, state: Path, **settings: Any) -> Announcer:
    """Return an announcer that looks and retries soon."""
    announce = AnnounceConfig(servers=(url,), **({"timeout": Duration(PATIENCE * 10**9)} | settings))
    ship = ShipConfig(
        interval=Duration(100_000_000),
        back_off_limit=Duration(1_000_000_000),
        announce=announce,
        targets={TARGET: target},
    )
    return Announcer(ship, Catalogue(state / "bundles").read, HOST)


@asynccontextmanager
async def running(announcer: Announcer) -> AsyncIterator[Announcer]:
    """Run an announcer."""
    task = asyncio.create_task(announcer.run())
    try:
        yield announcer
    finally:
        announcer.stop()
        await asyncio.wait_for(task, PATIENCE)


async def ship(state: Path, count: int, *, begin: int = 0) -> TargetConfig:
    """Write bundles and ship them; return the target."""
    target = directory_target(state / "store")
    fill(state, count, begin=begin)
    shipper = shipper_to(target, state)
    await shipper.look()
    await shipper.send_due()
    return target


def marks(state: Path) -> list[str]:
    """Return the marks of the receipts."""
    found = [read_receipt(receipt_path(bundle.path, TARGET)) for bundle in listed(state)]
    return [receipt.announced for receipt in found if receipt is not None]


async def once(announcer: Announcer) -> Announcer:
    """Look for bundles, and announce those that are due."""
    await announcer.look()
    await announcer.announce_due()
    return announcer


def manifests_of(state: Path) -> list[str]:
    """Return the SHA-256 of the manifest of each bundle."""
    return sorted(hashlib.sha256(manifest_path(each.path).read_bytes()).hexdigest() for each in listed(state))


async def test_every_shipped_bundle_is_announced_once(tmp_path: Path, server: NatsServer) -> None:
    """The message's id is the manifest's hash, and its body locates the bundle; unshipped ones are not announced."""
    await server.make_stream()
    target = await ship(tmp_path, 4)
    store(tmp_path, "not-shipped")
    announcer = await once(announcer_to(server.url, target, tmp_path))
    assert (announcer.counts.announced, announcer.counts.duplicates, announcer.waiting) == (4, 0, {})
    assert marks(tmp_path) == ["ergo.bundles"] * 4
    found = await server.messages()
    assert sorted(identity for _, identity, _ in found) == [
        each for each in manifests_of(tmp_path) if each in {identity for _, identity, _ in found}
    ]
    for subject, identity, body in found:
        (bundle,) = (bundle for bundle in listed(tmp_path) if body["session"] == _session(bundle.path))
        receipt, manifest = read_receipt(receipt_path(bundle.path, TARGET)), bundle.manifest
        assert receipt is not None
        assert manifest is not None
        assert subject == f"ergo.bundles.{bundle.graph}"
        assert body == {
            "format": "ergo-capture-announcement.v1",
            "host": HOST,
            "session": manifest.session,
            "part": manifest.part,
            "graph": manifest.graph,
            "ended": "complete",
            "ended_at": manifest.ended_at,
            "events": manifest.events,
            "decisions": manifest.decisions,
            "target": TARGET,
            "url": target.url,
            "key": receipt.key,
            "rest_key": None,
            "manifest_key": receipt.manifest_key,
            "file_bytes": bundle.path.stat().st_size,
            "file_sha256": hashlib.sha256(bundle.path.read_bytes()).hexdigest(),
            "bytes": manifest.bytes,
            "sha256": manifest.sha256,
            "manifest_sha256": identity,
            "shipped_at": receipt.shipped_at,
        }
    await once(announcer)
    assert len(await server.messages()) == announcer.counts.announced == 4


def _session(bundle: Path) -> str:
    return bundle.name.partition(".")[0]


async def test_a_bundle_that_is_published_again_is_announced_again(tmp_path: Path, server: NatsServer) -> None:
    """It has another manifest. An unchanged bundle is not announced again, even if another store gets it."""
    await server.make_stream()
    target = await ship(tmp_path, 2)
    announcer = await once(announcer_to(server.url, target, tmp_path))
    path = listed(tmp_path)[0].path
    changed = msgspec.structs.replace(read_manifest(manifest_path(path)), labels={"a": "b"})
    manifest_path(path).write_bytes(encode_manifest(changed))
    await ship(tmp_path, 0)
    await once(announcer)
    assert len(await server.messages()) == announcer.counts.announced == 3
    second = directory_target(tmp_path / "second")
    copy = shipper_to(second, tmp_path)
    copy.name = "copy"
    for bundle in listed(tmp_path):
        told = read_receipt(receipt_path(bundle.path, TARGET))
        assert told is not None
        other = msgspec.structs.replace(told, target="copy", url=second.url, announced="")
        receipt_path(bundle.path, "copy").write_bytes(msgspec.json.encode(other))
    both = announcer_to(server.url, target, tmp_path)
    both._receipts.places["copy"] = both._receipts.places[TARGET]._replace(url=second.url)
    await once(both)
    assert (both.counts.announced, both.waiting, len(await server.messages())) == (0, {}, 3)
    assert all(read_receipt(receipt_path(each.path, "copy")).announced for each in listed(tmp_path))  # type: ignore[union-attr]


async def test_another_subject_has_everything_announced_there(tmp_path: Path, server: NatsServer) -> None:
    """A new target is likewise sent everything."""
    await server.make_stream("ergo.bundles.>", "other.>")
    target = await ship(tmp_path, 2)
    await once(announcer_to(server.url, target, tmp_path))
    await once(announcer_to(server.url, target, tmp_path, subject="other.bundles"))
    subjects = [subject for subject, *_ in await server.messages()]
    # The stream is the same and so are the ids: it drops them as repetitions.
    assert subjects == ["ergo.bundles.g"] * 2
    assert marks(tmp_path) == ["other.bundles"] * 2


def test_the_name_of_a_graph_becomes_one_token() -> None:
    """Different names become different tokens."""
    names = ["default", "a.b", "a%2Eb", "a b", "*", ">", "", "%", "größe", "a\r\nPUB", "$JS"]
    subjects = [subject_of("ergo.bundles", name) for name in names]
    assert subjects[0] == "ergo.bundles.default"
    assert len(set(subjects)) == len(names)
    for subject in subjects:
        assert subject.count(".") == 2
        assert not set(subject) & set(" *>\r\n\t")
        assert subject.isascii()


async def test_announcements_wait_while_the_server_is_down_and_shipping_goes_on(
    tmp_path: Path, server: NatsServer, lines: list[Any]
) -> None:
    """The log has one line at the beginning and one at the end; no receipt is marked before."""
    await server.make_stream()
    server.kill()
    target = await ship(tmp_path, 3)
    async with running(announcer_to(server.url, target, tmp_path)) as announcer:
        await until(lambda: announcer.counts.failures["away"] >= 2)
        await ship(tmp_path, 2, begin=3)
        await until(lambda: len(announcer.waiting) == 5)
        assert marks(tmp_path) == [""] * 5
        assert announcer.oldest_seconds() > 0
        server.start()
        await until(lambda: announcer.outage.error is None)
        await until(lambda: not announcer.waiting)
    assert len(await server.messages()) == 5
    assert marks(tmp_path) == ["ergo.bundles"] * 5
    assert named(lines, "announce.away", "announce.resumed", "announce.refused") == [
        "announce.away",
        "announce.resumed",
    ]


class Relay:
    """A relay on loopback that drops the server's answers once the client has published something."""

    def __init__(self, port: int) -> None:
        self.port = port
        #: Whether acknowledgements are held back.
        self.holds = True
        #: Set once a message was passed on whose acknowledgement is held back.
        self.published = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        with suppress(OSError):
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
            down = asyncio.create_task(self._pass_on(from_server, writer))
            await self._pass_on(reader, to_server, note=True)
            await down
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if note and self.holds and b"HPUB" in data:
                    self.published.set()
                if note or not (self.holds and self.published.is_set()):
                    writer.write(data)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[Relay]:
    """Run a relay in this event loop."""
    relay = Relay(port)
    listener = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.url = f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        listener.close()


async def test_a_server_killed_before_its_acknowledgement_arrives_has_each_message_once(
    tmp_path: Path, server: NatsServer
) -> None:
    """The announcements are repeated after its restart, and the stream knows their ids."""
    await server.make_stream()
    target = await ship(tmp_path, 3)
    async with relay_to(server.port) as relay:
        announcer = announcer_to(relay.url, target, tmp_path, timeout=Duration(1_000_000_000))
        async with running(announcer):
            await relay.published.wait()
            while len(await server.messages()) < 3:
                await asyncio.sleep(0.02)
            server.kill()
            assert marks(tmp_path) == [""] * 3
            relay.holds = False
            server.start()
            await until(lambda: not announcer.waiting and announcer.outage.error is None)
    assert len(await server.messages()) == 3
    assert announcer.counts.duplicates == 3
    assert marks(tmp_path) == ["ergo.bundles"] * 3


async def test_a_server_that_hangs_is_given_up_after_the_timeout(
    tmp_path: Path, server: NatsServer, lines: list[Any]
) -> None:
    """It may hang before or after the connection; when it goes on, everything arrives."""
    await server.make_stream()
    target = await ship(tmp_path, 2)
    server.pause()
    async with running(announcer_to(server.url, target, tmp_path, timeout=Duration(300_000_000))) as announcer:
        await until(lambda: announcer.counts.failures["away"] >= 2)
        server.resume()
        await until(lambda: not announcer.waiting and announcer.outage.error is None)
    assert len(await server.messages()) == 2
    assert named(lines, "announce.away", "announce.resumed") == ["announce.away", "announce.resumed"]


async def test_a_stop_does_not_wait_for_a_server_that_hangs(tmp_path: Path, server: NatsServer) -> None:
    """The service ends its tasks within seconds; closing the connection is bounded too."""
    await server.make_stream()
    target = await ship(tmp_path, 2)
    async with relay_to(server.port) as relay:
        task = asyncio.create_task(announcer_to(relay.url, target, tmp_path).run())
        await relay.published.wait()
        server.pause()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
        server.kill()
    assert marks(tmp_path) == [""] * 2


async def test_a_kill_between_acknowledgement_and_mark_repeats_the_announcement(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark comes last. The stream drops the repetition within its window, and has it twice otherwise."""
    await server.make_stream(window=PATIENCE * 10)
    target = await ship(tmp_path, 2)

    def killed(*_arguments: Any) -> None:
        raise ErgoCaptureError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(module.Announcer, "_mark", killed)
        announcer = await once(announcer_to(server.url, target, tmp_path))
        assert announcer.counts.failures["failed"] == 1
        assert len(await server.messages()) == announcer.counts.announced
    again = await once(announcer_to(server.url, target, tmp_path))
    assert again.counts.duplicates == announcer.counts.announced > 0
    assert len(await server.messages()) == 2


async def test_a_receipt_that_changed_meanwhile_is_not_marked(tmp_path: Path, server: NatsServer) -> None:
    """An audit deleted one receipt, another was written anew; a mark names exactly what was announced."""
    await server.make_stream()
    target = await ship(tmp_path, 2)
    announcer = announcer_to(server.url, target, tmp_path)
    first, second = listed(tmp_path)
    receipts = [announcer._read(bundle) for bundle in (first, second)]
    receipt_path(first.path, TARGET).unlink()
    told = receipts[1][TARGET]
    other = msgspec.structs.replace(told, shipped_at="2026-11-23T12:00:00Z")
    receipt_path(second.path, TARGET).write_bytes(msgspec.json.encode(other))
    for bundle, found in zip((first, second), receipts, strict=True):
        announcer._mark(bundle, found)
    assert marks(tmp_path) == [""]


async def test_one_graph_without_a_stream_does_not_keep_the_others(
    tmp_path: Path, server: NatsServer, lines: list[Any]
) -> None:
    """The bundles of that graph wait, with one line, until a stream takes their subject."""
    await server.make_stream("ergo.bundles.g")
    store(tmp_path, "X1", graph="other")
    store(tmp_path, "X2", graph="other")
    target = await ship(tmp_path, 3)
    async with running(announcer_to(server.url, target, tmp_path)) as announcer:
        await until(lambda: announcer.counts.failures["refused"] >= 2)
        assert [bundle.graph for bundle in announcer.waiting.values()] == ["other"] * 2
        assert len(await server.messages()) == 3
        assert named(lines, "announce.refused", "announce.resumed") == ["announce.refused"]
        assert isinstance(announcer.outage.error, jetstream.AnnounceRefused)
        assert "no stream takes that subject" in announcer.outage.error.message


async def test_bundles_that_wait_are_not_compared_with_each_other(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not when one is announced, nor when those of a graph are refused; with many, it would take hours."""
    await server.make_stream("ergo.bundles.g")
    for number in range(5):
        store(tmp_path, f"X{number}", graph="other")
    announcer = announcer_to(server.url, await ship(tmp_path, 5), tmp_path)
    await announcer.look()
    waiting = announcer.waiting
    assert len(waiting) == 10

    def refuse(*_arguments: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(StoredBundle, "__eq__", refuse)
    await announcer.announce_due()
    assert announcer.waiting is waiting
    assert [bundle.graph for bundle in waiting.values()] == ["other"] * 5


async def test_a_full_stream_refuses_and_the_announcements_wait(tmp_path: Path, server: NatsServer) -> None:
    """The log has the stream's own words."""
    import nats
    from nats.js.api import DiscardPolicy, StreamConfig

    client = await nats.connect(server.url)
    config = StreamConfig(name="BUNDLES", subjects=["ergo.bundles.>"], max_msgs=1, discard=DiscardPolicy.NEW)
    await client.jetstream().add_stream(config)
    await client.close()
    target = await ship(tmp_path, 3)
    announcer = await once(announcer_to(server.url, target, tmp_path))
    assert announcer.outage.error is not None
    assert "maximum messages exceeded" in announcer.outage.error.message
    assert sorted(marks(tmp_path)) == ["", "", "ergo.bundles"]


# --- who may ---

USERS = """
accounts { A: { jetstream: enabled, users: [
  {user: "shipper", password: "right"},
  {user: "reader", password: "right", permissions: {publish: ["$JS.API.>"], subscribe: [">"]}}
] } }
"""
ADMIN: dict[str, Any] = {"user": "shipper", "password": "right"}


def credentials(place: Path, **values: Any) -> str:
    """Write a file of credentials; return its path."""
    path = place / "nats.credentials"
    path.write_text("".join(f"NATS_{key.upper()}={value}\n" for key, value in values.items()))
    return str(path)


async def test_wrong_credentials_are_refused_until_the_file_is_replaced(tmp_path: Path, lines: list[Any]) -> None:
    """The file is read again for each attempt, and the log does not contain the password."""
    with nats_server(USERS) as server:
        await server.make_stream(**ADMIN)
        target = await ship(tmp_path, 2)
        path = credentials(tmp_path, user="shipper", password="wrong-secret")
        async with running(announcer_to(server.url, target, tmp_path, credentials=path)) as announcer:
            await until(lambda: announcer.counts.failures["refused"] >= 2)
            assert marks(tmp_path) == [""] * 2
            credentials(tmp_path, **ADMIN)
            await until(lambda: not announcer.waiting and announcer.outage.error is None)
        assert len(await server.messages(**ADMIN)) == 2
    assert named(lines, "announce.refused", "announce.away", "announce.resumed") == [
        "announce.refused",
        "announce.resumed",
    ]
    assert "wrong-secret" not in str(lines)


async def test_a_user_who_may_not_publish_is_refused_by_name_of_the_subject(tmp_path: Path) -> None:
    """The server does not answer such a message, and reports the error separately."""
    with nats_server(USERS) as server:
        await server.make_stream(**ADMIN)
        target = await ship(tmp_path, 1)
        path = credentials(tmp_path, user="reader", password="right")
        announcer = announcer_to(server.url, target, tmp_path, credentials=path, timeout=Duration(1_000_000_000))
        failure = (await once(announcer)).outage.error
    assert isinstance(failure, jetstream.AnnounceRefused)
    assert 'permissions violation for publish to "ergo.bundles.g"' in failure.message


@pytest.mark.parametrize(
    ("text", "part"),
    [(None, "No such file"), ("x\n", "line 1 is not KEY=VALUE"), ("NATS_USER=a\n", "neither NATS_TOKEN nor")],
)
async def test_a_file_of_credentials_that_cannot_be_used_is_named(
    tmp_path: Path, server: NatsServer, text: str | None, part: str
) -> None:
    """Nothing is announced without credentials."""
    path = tmp_path / "nats.credentials"
    if text is not None:
        path.write_text(text)
    target = await ship(tmp_path, 1)
    failure = (await once(announcer_to(server.url, target, tmp_path, credentials=str(path)))).outage.error
    assert isinstance(failure, jetstream.AnnounceRefused)
    assert part in failure.message
    assert "nats.credentials" in failure.message


def _jwt(claims: dict[str, Any], signer: Any) -> str:
    """Return a token of NATS, signed."""

    def encoded(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    body = {"iat": 1_700_000_000, "iss": signer.public_key.decode(), **claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(body).encode())}"
    return f"{text}.{encoded(signer.sign(text.encode()))}"


@contextmanager
def operated_server() -> Iterator[tuple[NatsServer, Callable[[], str]]]:
    """Run a server in operator mode; yield it and a function that returns the text of a user's .creds file."""
    import secrets

    import nkeys

    def pair(prefix: int) -> Any:
        return nkeys.from_seed(nkeys.encode_seed(secrets.token_bytes(32), prefix))

    operator, account, system = (
        pair(prefix) for prefix in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
    )
    operator_key, account_key, system_key = (each.public_key.decode() for each in (operator, account, system))
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
    limits |= {"leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    of_account = {"limits": limits, "type": "account", "version": 2}
    no_stream = {"limits": {**limits, "mem_storage": 0, "disk_storage": 0}, "type": "account", "version": 2}
    accounts = {
        account_key: _jwt({"sub": account_key, "name": "a", "nats": of_account}, operator),
        system_key: _jwt({"sub": system_key, "name": "s", "nats": no_stream}, operator),
    }
    preload = ", ".join(f"{key}: {token}" for key, token in accounts.items())
    of_operator = {"system_account": system_key, "type": "operator", "version": 2}
    token = _jwt({"sub": operator_key, "name": "o", "nats": of_operator}, operator)
    more = f"operator: {token}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}"

    def creds() -> str:
        user = pair(nkeys.PREFIX_BYTE_USER)
        of_user = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}, "type": "user", "version": 2}
        token = _jwt({"sub": user.public_key.decode(), "name": "u", "nats": of_user}, account)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n------END USER NKEY SEED------\n"
        )

    with nats_server(more) as server:
        yield server, creds


async def test_a_creds_file_from_the_directory_of_credentials_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is as `nsc` writes it and as LoadCredential= passes it."""
    pytest.importorskip("nkeys")
    with operated_server() as (server, creds):
        (tmp_path / "announce.creds").write_text(creds())
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        admin: dict[str, Any] = {"user_credentials": str(tmp_path / "announce.creds")}
        await server.make_stream(**admin)
        target = await ship(tmp_path, 2)
        refused = await once(announcer_to(server.url, target, tmp_path))
        assert isinstance(refused.outage.error, jetstream.AnnounceRefused)
        announcer = await once(announcer_to(server.url, target, tmp_path, credentials="announce.creds"))
        assert announcer.outage.error is None
        assert len(await server.messages(**admin)) == 2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a self-signed certificate of 127.0.0.1; its key is beside it."""
    path = tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(tmp_path / "key.pem"), "-out", str(path), "-days", "2", "-subj", "/CN=127.0.0.1"]
    try:
        ran = subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no openssl")
    assert ran.returncode == 0, ran.stderr
    return path


async def test_over_tls_only_a_server_of_the_named_authority_is_told(tmp_path: Path, certificate: Path) -> None:
    """Another server is refused before anything secret is sent."""
    with nats_server(f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}') as server:
        import ssl

        tls = f"tls://127.0.0.1:{server.port}"
        admin: dict[str, Any] = {"server": tls, "tls": ssl.create_default_context(cafile=str(certificate))}
        await server.make_stream(**admin)
        target = await ship(tmp_path, 1)
        stranger = await once(announcer_to(tls, target, tmp_path))
        assert isinstance(stranger.outage.error, jetstream.AnnounceRefused)
        assert "certificate" in stranger.outage.error.message
        known = await once(announcer_to(tls, target, tmp_path, ca_file=str(certificate)))
        assert known.outage.error is None
        assert len(await server.messages(**admin)) == 1


async def test_with_tls_nothing_is_sent_to_a_server_without(tmp_path: Path) -> None:
    """Neither credentials nor announcements are sent: an intermediary could claim that there is no TLS."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"x","version":"2.10.0","headers":true,"auth_required":true,"max_payload":1}\r\n'
        )
        while data := await reader.read(1000):
            heard.extend(data)
            if b"PING" in data:
                writer.write(b"PONG\r\n")
        writer.close()

    plain = await asyncio.start_server(serve, "127.0.0.1", 0)
    tls = f"tls://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
    target = await ship(tmp_path, 1)
    for path in ("", credentials(tmp_path, **ADMIN), credentials(tmp_path, token="right")):
        failure = (await once(announcer_to(tls, target, tmp_path, credentials=path))).outage.error
        assert isinstance(failure, jetstream.AnnounceRefused)
        assert "offers no TLS" in failure.message
    assert b"right" not in heard
    assert b"PUB" not in heard
    plain.close()


async def test_the_first_server_that_answers_is_told(tmp_path: Path, server: NatsServer) -> None:
    """The other servers of the list are for failures."""
    await server.make_stream()
    target = await ship(tmp_path, 1)
    announcer = announcer_to("nats://127.0.0.1:1", target, tmp_path)
    announcer._settings = msgspec.structs.replace(announcer._settings, servers=("nats://127.0.0.1:1", server.url))
    assert (await once(announcer)).counts.announced == 1


# --- the stream, as `ship check` sees it ---


async def findings(server: NatsServer, *graphs: str, **settings: Any) -> list[tuple[str, bool]]:
    """Return the findings of a check."""
    announce = AnnounceConfig(servers=(server.url,), **settings)
    return [(each.text, each.is_failure) async for each in probe_stream(announce, graphs or ("default",))]


async def test_check_says_what_the_stream_is_like(tmp_path: Path, server: NatsServer) -> None:
    """It says for each graph whether the stream takes it, and how long the stream knows ids."""
    assert (await findings(server))[1] == (
        f"look for the stream of 'ergo.bundles.default' at {server.url}: no stream takes that subject",
        True,
    )
    await server.make_stream("ergo.bundles.default")
    found = await findings(server, "default", "other")
    assert ("stream BUNDLES takes ergo.bundles.default", False) in found
    assert any("within 120 s: after a longer pause" in text for text, _ in found)
    assert [text for text, failed in found if failed] == [
        f"look for the stream of 'ergo.bundles.other' at {server.url}: no stream takes that subject"
    ]
    server.kill()
    assert [failed for _, failed in await findings(server)] == [True]
    del tmp_path


# --- the service ---


def announce_table(server: NatsServer) -> str:
    """Return the table of the configuration."""
    return f'[ship.announce]\nservers = ["{server.url}"]\n'


def test_a_shipper_killed_between_receipt_and_announcement_announces_at_its_next_start(
    tmp_path: Path, server: NatsServer
) -> None:
    """The receipt is all that it needs; each message is in the stream once."""
    asyncio.run(server.make_stream())
    target = directory_target(tmp_path / "store")
    fill(tmp_path, 3)
    server.pause()
    with ship_process(tmp_path, tmp_path, announce_table(server) + table_of(target)) as service:
        service.until_logged("ship.sent", 3)
        service.kill()
        assert marks(tmp_path) == [""] * 3
        server.resume()
        service.start()
        deadline = time.monotonic() + PATIENCE
        while marks(tmp_path) != ["ergo.bundles"] * 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        fill(tmp_path, 2, begin=3)
        while marks(tmp_path) != ["ergo.bundles"] * 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.stop() == 0
    assert len(server.held()) == 5
    assert marks(tmp_path) == ["ergo.bundles"] * 5


def test_shipper_and_server_killed_at_random_lose_nothing(tmp_path: Path, server: NatsServer) -> None:
    """Every bundle is in the stream exactly once, if no repetition comes after the window."""
    asyncio.run(server.make_stream(window=3600))
    target = directory_target(tmp_path / "store")
    with ship_process(tmp_path, tmp_path, announce_table(server) + table_of(target)) as service:
        for number in range(6):
            fill(tmp_path, 5, begin=5 * number)
            time.sleep(0.05 * (number % 3))
            if number % 2:
                server.kill()
                server.start()
            else:
                service.kill()
                service.start()
        deadline = time.monotonic() + PATIENCE
        while marks(tmp_path) != ["ergo.bundles"] * 30 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.stop() == 0
    assert sorted(identity for _, identity, _ in server.held()) == manifests_of(tmp_path)


def test_the_service_stops_within_seconds_though_the_server_hangs(tmp_path: Path, server: NatsServer) -> None:
    """Announcements without an acknowledgement wait in the receipts."""
    target = directory_target(tmp_path / "store")
    fill(tmp_path, 1)
    server.pause()
    with ship_process(tmp_path, tmp_path, announce_table(server) + table_of(target)) as service:
        service.until_logged("ship.sent")
        assert service.stop() == 0
    assert marks(tmp_path) == [""]
