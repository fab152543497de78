"""Sending one bundle to one store: the order of the steps, and what ends them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.bundles import store
from tests.ship.rig import assert_receipts_are_true, fill, listed, one, sender_to

from ergo_capture.bundle.manifest import RestFile
from ergo_capture.bundle.names import manifest_path, rest_path
from ergo_capture.bundle.receipt import read_receipt, receipt_path
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import LeftOver
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.keys import parse_manifest_key, sha256_of, sha256_of_rest
from ergo_capture.ship.fetching import fetch
from ergo_capture.ship.sending import Changed, Differs, Stopped, Unsound
from ergo_capture.storage.write_error import CaptureWriteError


class Recorded(DirectoryStore):
    """A directory store that notes the keys that are written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        """Write an object, and note its key."""
        super().put(key, blocks, size)
        self.written.append(key)


def keys(root: Path) -> list[str]:
    """Return the keys in a directory."""
    return [info.key for info in DirectoryStore(root).list()]


def receipts(state: Path) -> list[str]:
    """Return the names of the receipts of a state directory."""
    return [path.name for path in state.rglob("*.shipped.*")]


@pytest.mark.parametrize("compress", [False, True])
def test_a_bundle_its_manifest_and_the_receipt_are_written_in_that_order(tmp_path: Path, compress: bool) -> None:
    """A reader who finds a manifest in the store also finds the whole bundle."""
    store(tmp_path, "S", compress=compress)
    sender = sender_to(tmp_path / "store", Recorded)
    sent = sender.send(one(tmp_path))
    assert isinstance(sender.store, Recorded)
    first, second = sender.store.written
    assert sha256_of(first) == sent.receipt.file_sha256
    assert first.endswith(".zst") == compress
    assert parse_manifest_key(second) is not None
    assert not sent.was_there
    assert receipts(tmp_path) == ["S.shipped.archive.json"]
    assert assert_receipts_are_true(tmp_path, sender.store) == 1


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: text + b" ", lambda text: b"X" + text[1:]])
def test_a_file_that_is_not_what_its_manifest_says_leaves_nothing_in_the_store(tmp_path: Path, change: Any) -> None:
    """The last block is held back until size and hash are known."""
    path = store(tmp_path, "S")
    bundle = one(tmp_path)
    status = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    sender = sender_to(tmp_path / "store")
    # The size tells before the file is read; the hash does not.
    with pytest.raises((Unsound, Changed)):
        sender.send(bundle)
    assert keys(tmp_path / "store") == []
    assert receipts(tmp_path) == []


def test_a_bundle_that_is_published_again_while_it_is_sent_gets_no_receipt(tmp_path: Path) -> None:
    """The store has the old bundle, which is sound but not the current one."""

    class Republished(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            super().put(key, blocks, size)
            store(tmp_path, "S", sequence=9)

    store(tmp_path, "S")
    with pytest.raises(Changed, match="meanwhile"):
        sender_to(tmp_path / "store", Republished).send(one(tmp_path))
    assert receipts(tmp_path) == []


def test_a_bundle_that_is_pruned_while_it_is_sent_gets_no_receipt(tmp_path: Path) -> None:
    """A receipt without a bundle would never be deleted."""

    class Pruned(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            super().put(key, blocks, size)
            for path in (bundle, manifest_path(bundle)):
                path.unlink(missing_ok=True)

    bundle = store(tmp_path, "S")
    with pytest.raises(Changed, match="meanwhile"):
        sender_to(tmp_path / "store", Pruned).send(one(tmp_path))
    assert receipts(tmp_path) == []


def test_a_bundle_that_is_gone_is_changed(tmp_path: Path) -> None:
    """It was deleted between the look and the sending."""
    path = store(tmp_path, "S")
    bundle = one(tmp_path)
    path.unlink()
    with pytest.raises(Changed, match="meanwhile"):
        sender_to(tmp_path / "store").send(bundle)


def test_a_bundle_that_was_compressed_since_is_sent_as_it_is(tmp_path: Path) -> None:
    """Its key is the hash of the file; first its text is compared with the manifest."""
    path = store(tmp_path, "S")
    compressed = path.with_name(path.name + ".zst")
    compressed.write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    sender = sender_to(tmp_path / "store")
    sent = sender.send(one(tmp_path))
    assert sent.receipt.key.endswith(".zst")
    assert assert_receipts_are_true(tmp_path, sender.store) == 1
    compressed.write_bytes(zstandard.compress(b"another"))
    with pytest.raises(Unsound):
        sender.send(one(tmp_path))


@pytest.mark.parametrize("verify", ["read", "head"])
def test_a_store_that_gives_back_something_else_differs(tmp_path: Path, verify: Any) -> None:
    """Its bytes differ, or its size if it is not read."""

    class Forgetful(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            del size
            wrong = b"".join(blocks)[1:] + b"X" * (verify == "read")
            super().put(key, [wrong], len(wrong))

    store(tmp_path, "S")
    with pytest.raises(Differs, match=r"were written|SHA-256"):
        sender_to(tmp_path / "store", Forgetful, verify=verify).send(one(tmp_path))
    assert receipts(tmp_path) == []


def test_after_a_failure_the_store_is_asked_before_the_bundle_is_sent_again(tmp_path: Path) -> None:
    """After a lost answer there is one request and no upload; the object is verified nevertheless."""
    path = store(tmp_path, "S")
    sender = sender_to(tmp_path / "store", Recorded)
    assert isinstance(sender.store, Recorded)
    sent = sender.send(one(tmp_path))
    assert sender.send(one(tmp_path), is_repeated=True).was_there
    assert sender.store.written.count(sent.receipt.key) == 1
    (tmp_path / "store" / sent.receipt.key).write_bytes(b"x" * path.stat().st_size)
    assert not sender.send(one(tmp_path), is_repeated=True).was_there
    assert sender.store.written.count(sent.receipt.key) == 2
    assert assert_receipts_are_true(tmp_path, sender.store) == 1


def test_an_object_of_yesterday_is_written_again(tmp_path: Path) -> None:
    """Otherwise a lifecycle rule of the bucket would delete it by the date of its first writing."""
    store(tmp_path, "S")
    sender = sender_to(tmp_path / "store", Recorded)
    assert isinstance(sender.store, Recorded)
    sent = sender.send(one(tmp_path))
    past = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    os.utime(tmp_path / "store" / sent.receipt.key, (past, past))
    assert not sender.send(one(tmp_path), is_repeated=True).was_there
    assert sender.store.written.count(sent.receipt.key) == 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The file that it leads to belongs to no bundle."""
    path = store(tmp_path, "S")
    bundle = one(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ErgoCaptureError):
        sender_to(tmp_path / "store").send(bundle)
    assert keys(tmp_path / "store") == []


def test_stopping_ends_an_upload_without_an_object(tmp_path: Path) -> None:
    """Without a receipt, the bundle is sent again later."""

    class Stopping(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            sender.stop()
            super().put(key, blocks, size)

    store(tmp_path, "S")
    sender = sender_to(tmp_path / "store", Stopping)
    with pytest.raises(Stopped):
        sender.send(one(tmp_path))
    assert keys(tmp_path / "store") == []
    with pytest.raises(Stopped):
        sender.send(one(tmp_path))


def test_what_is_handed_over_and_read_back_is_counted(tmp_path: Path) -> None:
    """The bundle and its manifest count twice each; this is for the progress on a terminal."""
    path = store(tmp_path, "S")
    counted: list[int] = []
    sender_to(tmp_path / "store", on_bytes=counted.append).send(one(tmp_path))
    assert sum(counted) >= 2 * path.stat().st_size


def test_a_receipt_that_cannot_be_written_is_an_error_and_the_next_attempt_sends_nothing(tmp_path: Path) -> None:
    """The object is in the store already."""
    store(tmp_path, "S")
    sender = sender_to(tmp_path / "store", Recorded)
    assert isinstance(sender.store, Recorded)
    path = receipt_path(one(tmp_path).path, "archive")
    path.mkdir()
    with pytest.raises(CaptureWriteError, match=r"S\.shipped\.archive\.json"):
        sender.send(one(tmp_path))
    path.rmdir()
    assert sender.send(one(tmp_path), is_repeated=True).was_there
    assert read_receipt(path) is not None
    assert len([key for key in sender.store.written if sha256_of(key)]) == 1


def test_a_bundle_of_another_version_keeps_its_unknown_fields(tmp_path: Path) -> None:
    """The manifest is passed on as it is."""
    path = store(tmp_path, "S")
    text = manifest_path(path).read_bytes().replace(b'{\n  "format"', b'{\n  "later": [1, 2],\n  "format"')
    manifest_path(path).write_bytes(text)
    sender = sender_to(tmp_path / "store")
    sender.send(one(tmp_path))
    assert assert_receipts_are_true(tmp_path, sender.store) == 1


def test_many_bundles_have_many_keys(tmp_path: Path) -> None:
    """Bundles with different texts never share a key."""
    fill(tmp_path, 6)
    sender = sender_to(tmp_path / "store")
    for bundle in listed(tmp_path):
        sender.send(bundle)
    assert len(keys(tmp_path / "store")) == 12


def with_rest(state: Path) -> Path:
    """Store a bundle with left-over events; return the file that holds these."""
    text = b'{"type":"event"}\n'
    found = RestFile(len(text), hashlib.sha256(text).hexdigest())
    rest = rest_path(store(state, "S", left_over=LeftOver(2, "e2", 1), rest=found))
    rest.write_bytes(text)
    return rest


def test_events_that_were_left_over_are_sent_before_the_manifest_and_fetched_with_it(tmp_path: Path) -> None:
    """With the receipt, retention may delete them here."""
    rest = with_rest(tmp_path)
    sender = sender_to(tmp_path / "store", Recorded)
    sent = sender.send(one(tmp_path))
    assert isinstance(sender.store, Recorded)
    _, second, third = sender.store.written
    assert sha256_of_rest(second) == hashlib.sha256(rest.read_bytes()).hexdigest()
    assert third == sent.receipt.manifest_key
    bundle = fetch(sender.store, third, tmp_path / "fetched")
    assert rest_path(bundle).read_bytes() == rest.read_bytes()
    assert fetch(sender.store, third, tmp_path / "fetched") == bundle


def test_events_that_were_left_over_are_sent_as_the_manifest_names_them(tmp_path: Path) -> None:
    """If the file is damaged or missing, the store gets no manifest, and there is no receipt."""
    with_rest(tmp_path).write_bytes(b'{"type":"tnevent"}\n')
    sender = sender_to(tmp_path / "store")
    with pytest.raises(Unsound):
        sender.send(one(tmp_path))
    with_rest(tmp_path).unlink()
    with pytest.raises(ErgoCaptureError):
        sender.send(one(tmp_path))
    assert [key for key in keys(tmp_path / "store") if parse_manifest_key(key)] == []
    assert receipts(tmp_path) == []
