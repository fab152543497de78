"""The behaviour of every object store, with a real S3 server and with a directory."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.seaweed import READER, Seaweed

from ergo_capture.config import parse
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.objects.credentials import read_credentials
from ergo_capture.objects.opening import is_store_url, open_store, target_of
from ergo_capture.objects.port import ObjectMissing, ObjectStore, StoreAway, StoreRefused


def directory_target(path: Path) -> TargetConfig:
    """Return the settings of a target in a directory."""
    return TargetConfig(url=path.as_uri())


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Return an empty store."""
    if request.param == "directory":
        return open_store(directory_target(tmp_path))
    server: Seaweed = request.getfixturevalue("s3")
    return open_store(server.target(f"stores/{secrets.token_hex(4)}"))


def read(store: ObjectStore, key: str) -> bytes:
    """Return an object's content."""
    return b"".join(store.get(key))


@pytest.mark.parametrize("sizes", [[], [5], [100_000] * 3, [6 << 20] * 4], ids=["empty", "small", "blocks", "parts"])
def test_what_was_put_is_read_back(store: ObjectStore, sizes: list[int]) -> None:
    """They are put in one request or in parts."""
    blocks = [bytes([index]) * size for index, size in enumerate(sizes)]
    store.put("a/b.json", iter(blocks), sum(sizes))
    assert read(store, "a/b.json") == b"".join(blocks)
    info = store.head("a/b.json")
    assert info is not None
    assert (info.key, info.size) == ("a/b.json", sum(sizes))
    assert info.modified.tzinfo is not None


def test_a_second_put_replaces_the_first(store: ObjectStore) -> None:
    """Nothing is conditional: a lost answer would look like a conflict."""
    store.put("k", [b"one"], 3)
    store.put("k", [b"three"], 5)
    assert read(store, "k") == b"three"


@pytest.mark.parametrize("sizes", [[5, 5], [6 << 20] * 4], ids=["small", "parts"])
def test_an_iterator_that_raises_leaves_no_object_and_raises_its_own_error(
    store: ObjectStore, sizes: list[int]
) -> None:
    """The last block is held back until the hash is known, so nothing wrong gets a name."""

    def blocks() -> Iterator[bytes]:
        yield from map(bytes, sizes)
        raise ErgoCaptureError("mine")

    with pytest.raises(ErgoCaptureError, match="mine"):
        store.put("k", blocks(), sum(sizes) + 1)
    assert store.head("k") is None


def test_an_object_that_is_not_there_is_missing(store: ObjectStore) -> None:
    """A store that does not exist gives another error."""
    assert store.head("none") is None
    with pytest.raises(ObjectMissing, match="there is none"):
        read(store, "none")


def test_objects_are_listed_below_a_prefix_in_order(store: ObjectStore) -> None:
    """A prefix ends where a name between slashes ends."""
    for key in ("m/date=2/x", "m/date=1/host=b/x", "m/date=1/host=a/S~2%25", "mm/x", "x"):
        store.put(key, [b"1"], 1)
    below = [info.key for info in store.list("m")]
    assert below == ["m/date=1/host=a/S~2%25", "m/date=1/host=b/x", "m/date=2/x"]
    assert [info.key for info in store.list()] == [*below, "mm/x", "x"]
    assert list(store.list("none")) == []
    assert store.folders("m") == ("date=1", "date=2")
    assert store.folders() == ("m", "mm")
    assert store.folders("none") == ()


# --- a directory ---


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A disk that is not mounted must not have its directory filled."""
    store = open_store(directory_target(tmp_path / "none"))
    for act in (
        lambda: store.put("k", [b""], 0),
        lambda: store.head("k"),
        lambda: list(store.list()),
        lambda: read(store, "k"),
    ):
        with pytest.raises(StoreRefused, match="there is no directory"):
            act()
    assert not (tmp_path / "none").exists()


def test_a_directory_shows_no_temporaries(tmp_path: Path) -> None:
    """A killed writer leaves temporaries."""
    (tmp_path / "k.1.0.tmp").write_bytes(b"")
    assert list(open_store(directory_target(tmp_path)).list()) == []


@pytest.mark.parametrize("key", ["../x", "a//b", "a/./b", ""])
def test_a_key_does_not_lead_out_of_the_directory(tmp_path: Path, key: str) -> None:
    """A key must not lead to another name of the same file either."""
    with pytest.raises(ObjectMissing, match="not a key"):
        open_store(directory_target(tmp_path)).put(key, [b""], 0)


def test_a_full_disk_is_away_and_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    """The error is a temporary one: there may be room later."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small disk")
    try:
        store = open_store(directory_target(tmp_path))
        store.put("k", [b"x"], 1)
        with pytest.raises(StoreAway, match="No space left"):
            store.put("k", [bytes(1 << 20)] * 2, 2 << 20)
        assert read(store, "k") == b"x"
        assert [path.name for path in tmp_path.iterdir()] == ["k"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- S3 ---


@pytest.mark.parametrize(
    "identity", [("writer", "wrong"), ("nobody", "nobodys-secret"), READER], ids=["secret", "key", "rights"]
)
def test_wrong_credentials_are_refused_by_the_servers_word(s3: Seaweed, identity: tuple[str, str]) -> None:
    """They stay wrong until somebody changes them, so the error is not a temporary one."""
    store = open_store(s3.target("refused", identity))
    with pytest.raises(StoreRefused, match=r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied") as caught:
        store.put("k", [b"x"], 1)
    assert identity[1] not in str(caught.value)


def test_a_bucket_that_is_not_there_is_refused(s3: Seaweed) -> None:
    """The client's own error is that a file is not found."""
    store = open_store(s3.target("x", bucket="nowhere"))
    for act in (lambda: store.put("k", [b"x"], 1), lambda: list(store.list()), lambda: read(store, "k")):
        with pytest.raises(StoreRefused, match="NoSuchBucket"):
            act()


def test_a_server_that_is_not_there_is_away(s3: Seaweed) -> None:
    """There are few attempts, because the caller has a back-off of its own."""
    store = open_store(s3.target("x", endpoint="http://127.0.0.1:9"))
    with pytest.raises(StoreAway, match=r"no answer \(connect\)"):
        store.put("k", [b"x"], 1)


def test_an_object_larger_than_a_range_is_read_in_several(s3: Seaweed) -> None:
    """The ranges join without a gap."""
    store = open_store(s3.target("ranges"))
    content = secrets.token_bytes((33 << 20) + 1)
    store.put("k", [content], len(content))
    blocks = list(store.get("k"))
    assert len(blocks) == 3
    assert b"".join(blocks) == content


# --- opening ---


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, not only the package."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ErgoCaptureError) as caught:
        open_store(TargetConfig(url="s3://b"))
    assert caught.value.hint == "pip install 'ergo-capture[ship]'"


def test_opening_a_directory_needs_no_extra(tmp_path: Path) -> None:
    """Importing the package needs none either."""
    code = f"import sys; sys.modules['obstore'] = None\nfrom ergo_capture.objects.opening import *\nopen_store(TargetConfig(url={tmp_path.as_uri()!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_credentials_are_lines_of_a_file_that_systemd_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments, quotes and ``export`` are as in a shell's file; a Google account is JSON."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "a").write_text("# mine\nexport AWS_ACCESS_KEY_ID=k\n\nAWS_SECRET_ACCESS_KEY = 's=s'\n")
    assert read_credentials("a") == {"aws_access_key_id": "k", "aws_secret_access_key": "s=s"}
    (tmp_path / "g").write_text('{"type": "service_account"}')
    assert read_credentials("g") == {"google_service_account_key": '{"type": "service_account"}'}
    assert read_credentials("") == {}


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"secret\n", "line 1 "), (b"\xff", "not UTF-8")]
)
def test_credentials_that_cannot_be_used_are_not_quoted(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """The log must not have secrets."""
    path = tmp_path / "c"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreRefused, match=reason) as caught:
        read_credentials(str(path))
    assert "secret" not in str(caught.value)


def test_a_certificate_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """This is found before anything is sent."""
    pytest.importorskip("obstore")
    with pytest.raises(StoreRefused, match="No such file"):
        open_store(TargetConfig(url="s3://b", region="us-east-1", ca_file=str(tmp_path / "none")))


def test_a_url_takes_the_settings_of_the_target_that_it_begins_with() -> None:
    """The longest URL wins; without a match, the settings are those of the environment."""
    targets = parse(
        '[ship.targets.a]\nurl = "s3://b/"\n[ship.targets.p]\nurl = "s3://b/p"\nregion = "r"\n', "test"
    ).ship.targets
    assert target_of("s3://b/p/objects/x", targets) == (targets["p"], "objects/x")
    assert target_of("s3://b/pp/x", targets) == (targets["a"], "pp/x")
    assert target_of("s3://c/x/y", targets) == (TargetConfig(url="s3://c"), "x/y")
    assert target_of("file:///d/x", {}) == (TargetConfig(url="file:///"), "d/x")
    assert is_store_url("s3://b")
    assert not is_store_url("runs/x.capture.json")
