"""``ergo-capture ship``, ``bundles fetch``, and reading commands with URLs, as a person uses them."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import store
from tests.daemons import COMMAND, command, command_environment
from tests.seaweed import Seaweed
from tests.ship.rig import HOST, directory_target, fill, held, listed, table_of

from ergo_capture import config as configuration
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.receipt import read_receipt, receipt_path
from ergo_capture.cli import app
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.server.ops.systemd import SystemdNotifier
from ergo_capture.ship import service


class Place:
    """A state directory, a target, and the command with both."""

    def __init__(self, directory: Path, target: TargetConfig) -> None:
        self.state = directory / "state"
        self.target = target
        self.config = directory / "config.toml"
        self.config.write_text(f'[state]\ndirectory = "{self.state}"\n[ship]\nhost = "{HOST}"\n{table_of(target)}')

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the command; return its output, and its errors where it has to fail."""
        ran = command(*arguments, "--config", str(self.config))
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + (ran.stderr if code else "")

    def receipt(self, name: str) -> Any:
        """Return a bundle's receipt."""
        (path,) = (bundle.path for bundle in listed(self.state) if bundle.path.name.startswith(f"{name}."))
        return read_receipt(receipt_path(path, "archive"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place with five bundles and a directory as the target."""
    found = Place(tmp_path, directory_target(tmp_path / "store"))
    fill(found.state, 5)
    return found


@pytest.fixture
def remote(tmp_path: Path, s3: Seaweed) -> Place:
    """Return a place with three bundles, shipped to S3."""
    (tmp_path / "remote").mkdir()
    found = Place(tmp_path / "remote", s3.target(f"commands/{secrets.token_hex(4)}"))
    fill(found.state, 3)
    found.run("ship", "once")
    return found


def test_once_ships_what_is_due_and_status_says_so(place: Place) -> None:
    """A second run ships nothing."""
    assert "to ship  5 bundles" in place.run("ship", "status")
    assert place.run("ship", "once").startswith("archive: shipped 5 bundles, ")
    assert place.run("ship", "once") == "archive: shipped 0 bundles, 0 B\n"
    said = json.loads(place.run("ship", "status", "--json"))
    assert (said["shipped"], said["backlog_bundles"], said["backlog_bytes"], said["unsound"]) == (5, 0, 0, 0)
    assert len(held(place.state, place.target)) == 5


def test_once_says_what_is_left_and_why(place: Place) -> None:
    """The exit code is 1."""
    shutil.rmtree(place.target.url.removeprefix("file://"))
    said = place.run("ship", "once", code=1)
    assert "5 bundles left" in said
    assert "there is no directory" in said
    assert "Try: " in said


def test_once_names_what_is_not_sound_and_ends_with_3(place: Place) -> None:
    """The others are shipped."""
    listed(place.state)[0].path.write_bytes(b"{}")
    assert "ship.unsound" in place.run("ship", "once", code=3)
    assert len(held(place.state, place.target)) == 4


def test_check_says_what_works(place: Place, remote: Place) -> None:
    """It also says what it cannot see."""
    assert place.run("ship", "check").splitlines()[1:] == [
        "  wrote probe/host=host-1.json",
        "  read it back",
        "  listed it",
    ]
    assert "not visible from here: the bucket's lifecycle rule" in remote.run("ship", "check")


def test_check_names_what_is_missing(tmp_path: Path, s3: Seaweed) -> None:
    """A reader's rights are not enough."""
    place = Place(tmp_path, s3.target("x", ("reader", "reader-secret")))
    assert "failed: write object 's3://bundles/x/probe/" in place.run("ship", "check", code=1)


def test_audit_deletes_the_receipt_of_what_the_store_lost(place: Place) -> None:
    """Missing, of another size, or without its manifest; the next round ships it again."""
    place.run("ship", "once")
    root = Path(place.target.url.removeprefix("file://"))
    assert place.run("ship", "audit") == ""
    (root / place.receipt("S0").key).unlink()
    (root / place.receipt("S1").key).write_bytes(b"short")
    (root / place.receipt("S2").manifest_key).unlink()
    (root / place.receipt("S3").manifest_key).write_bytes(b"{}")
    said = place.run("ship", "audit", "--dry-run", code=3)
    assert "S0.capture.json: the store has no such object" in said
    assert "1 object there, 4 missing or wrong" in said
    assert len(held(place.state, place.target)) == 5
    place.run("ship", "audit", code=3)
    assert len(held(place.state, place.target)) == 1
    assert "shipped 4 bundles" in place.run("ship", "once")
    place.run("ship", "audit", "--read", "--store")


def test_audit_reads_every_byte_if_asked(place: Place) -> None:
    """A size that is right proves little; what only the store knows is looked for too."""
    place.run("ship", "once")
    root = Path(place.target.url.removeprefix("file://"))
    object_file = root / place.receipt("S3").key
    object_file.write_bytes(object_file.read_bytes()[:-1] + b"X")
    place.run("ship", "audit")
    said = [
        json.loads(line)
        for line in place.run("ship", "audit", "--read", "--json", "--dry-run", code=3).splitlines()
        if line.startswith("{")
    ]
    assert len(said) == 5
    assert [each["problem"] is None for each in said].count(False) == 1
    for bundle in listed(place.state):
        bundle.path.unlink()
    assert "its SHA-256 is not that of its key" in place.run("ship", "audit", "--read", "--store", code=3)


def test_put_ships_bundles_from_anywhere(place: Place, tmp_path: Path) -> None:
    """Each gets a receipt, so that nothing is sent a second time; a bundle without a manifest is never shipped."""
    path = store(tmp_path / "salvaged", "rescued", ended="salvaged")
    said = place.run("ship", "put", str(path))
    assert said.startswith(f"archive: {path}: file://")
    assert place.run("ship", "put", str(path.parent)) == f"archive: {path}: shipped already\n"
    manifest_path(path).unlink()
    receipt_path(path, "archive").unlink()
    assert "no manifest" in place.run("ship", "put", str(path), code=1)
    assert "Try: name a path that exists" in place.run("ship", "put", str(path.with_name("nowhere")), code=1)


def test_put_does_not_compare_bundles_with_each_other(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Comparing very many bundles would take hours."""

    def refuse(*_arguments: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(StoredBundle, "__eq__", refuse)
    assert app.run(["ship", "put", str(place.state / "bundles"), "--config", str(place.config)]) == 0
    assert capsys.readouterr().out.count("file://") == 5


def test_shippers_and_announcer_share_one_list_of_the_bundles(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list keeps a manifest for every bundle."""
    made = []

    class Counted(Catalogue):
        def __init__(self, directory: Path) -> None:
            super().__init__(directory)
            made.append(self)

    monkeypatch.setattr(service, "Catalogue", Counted)
    place.config.write_text(
        f'{place.config.read_text()}[ship.targets.second]\nurl = "{place.target.url}/2"\n'
        '[ship.announce]\nservers = ["nats://localhost"]\n'
    )
    loaded = configuration.load(place.config)
    ships = service.ShipService(loaded, lambda: loaded, SystemdNotifier.from_environment())
    assert len(ships.shippers) == 2
    assert ships.announcer is not None
    assert len(made) == 1


def test_a_target_is_named_or_all_are_meant(place: Place) -> None:
    """A name that is none is a usage error; no target at all is the configuration's."""
    assert "there is no target 'x'" in place.run("ship", "status", "--target", "x", code=2)
    place.run("ship", "once", "--target", "archive")
    place.config.write_text("")
    assert "no target is configured" in place.run("ship", "status", code=78)


def test_a_missing_extra_is_named(place: Place, tmp_path: Path) -> None:
    """It is named at the start, before the first bundle."""
    (tmp_path / "lib" / "obstore").mkdir(parents=True)
    (tmp_path / "lib" / "obstore" / "__init__.py").write_text("raise ImportError('none')")
    place.config.write_text('[ship.targets.a]\nurl = "s3://b"\n')
    environment = command_environment()
    environment["PYTHONPATH"] = f"{tmp_path / 'lib'}:{environment.get('PYTHONPATH', '')}"
    ran = subprocess.run(
        [*COMMAND, "ship", "run", "--config", str(place.config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 78
    assert "Try: pip install 'ergo-capture[ship]'" in ran.stderr


def test_list_shows_what_is_shipped(place: Place) -> None:
    """A column where targets are configured, and a field of each object."""
    place.run("ship", "once")
    receipt_path(listed(place.state)[0].path, "archive").unlink()
    lines = place.run("bundles", "list").splitlines()
    assert "SHIPPED" in lines[0]
    assert ["archive" in line.split() for line in lines[1:]] == [False, True, True, True, True]
    shipped = [json.loads(line)["shipped"] for line in place.run("bundles", "list", "--json").splitlines()]
    assert shipped == [[], *[["archive"]] * 4]
    place.config.write_text(f'[state]\ndirectory = "{place.state}"\n')
    assert "SHIPPED" not in place.run("bundles", "list")


# --- bringing back ---


@pytest.mark.parametrize("how", ["session", "hash", "date"])
def test_fetch_brings_a_bundle_back_and_verifies_it(remote: Place, tmp_path: Path, how: str) -> None:
    """It is found by its session or by the hash of its file; the manifest is unchanged."""
    receipt, out = remote.receipt("S1"), tmp_path / "out"
    name = receipt.file_sha256 if how == "hash" else "S1"
    more = ["--date", receipt.manifest_key.split("date=")[1][:10]] if how == "date" else []
    assert "ok, 2 events, 2 decisions" in remote.run("bundles", "fetch", name, "-o", str(out), *more)
    if how == "hash":
        assert [path.name for path in out.iterdir()] == [receipt.key.rpartition("/")[2]]
        return
    original = next(bundle.path for bundle in listed(remote.state) if "S1." in bundle.path.name)
    assert (out / original.name).read_bytes() == original.read_bytes()
    assert (out / "S1.manifest.json").read_bytes() == manifest_path(original).read_bytes()
    # Again, over the same file.
    remote.run("bundles", "fetch", name, "-o", str(out))
    (out / original.name).write_bytes(b"mine")
    assert "exists and is another file" in remote.run("bundles", "fetch", name, "-o", str(out), code=1)


def test_fetch_finds_sessions_of_other_hosts_if_asked(place: Place, tmp_path: Path) -> None:
    """By default, only sessions of this host are found."""
    place.run("ship", "once")
    out = str(tmp_path / "out")
    place.config.write_text(place.config.read_text().replace(HOST, "host-2"))
    assert "no such session from host 'host-2'" in place.run("bundles", "fetch", "S1", "-o", out, code=1)
    assert "no such session" in place.run("bundles", "fetch", "S", "--any-host", "-o", out, code=1)
    assert "ok, 2 events" in place.run("bundles", "fetch", "S1", "--any-host", "-o", out)
    assert "ok, 2 events" in place.run("bundles", "fetch", "S2", "--host", HOST, "-o", out)


def test_fetch_brings_all_parts(place: Place, tmp_path: Path) -> None:
    """A bundle beside a finished one is fetched too, but no session whose name merely begins the same."""
    for name in ("S1~2", "S1~2~2", "S10"):
        store(place.state, name)
    place.run("ship", "once")
    place.run("bundles", "fetch", "S1", "-o", str(tmp_path / "out"))
    names = sorted(path.name.partition(".")[0] for path in (tmp_path / "out").glob("*.capture.json*"))
    assert names == ["S1", "S1~2", "S1~2~2"]


def test_what_was_changed_in_the_store_is_refused(place: Place, tmp_path: Path) -> None:
    """The bundle by its key, the manifest by its own."""
    place.run("ship", "once")
    root, out = Path(place.target.url.removeprefix("file://")), str(tmp_path / "out")
    receipt = place.receipt("S0")
    original = (root / receipt.key).read_bytes()
    (root / receipt.key).write_bytes(original[:-1] + b" ")
    assert "its SHA-256 is" in place.run("bundles", "fetch", "S0", "-o", out, code=1)
    (root / receipt.key).write_bytes(original)
    about = root / receipt.manifest_key
    about.write_bytes(about.read_bytes().replace(b'"events":2', b'"events":3'))
    assert "its SHA-256 is not that of its key" in place.run("bundles", "fetch", "S0", "-o", out, code=1)
    assert not list((tmp_path / "out").glob("*"))


def test_reading_commands_take_urls(remote: Place) -> None:
    """The URL names a bundle, its manifest, or everything below a prefix."""
    receipt, url = remote.receipt("S1"), remote.target.url
    assert f"{url}/{receipt.key}: ok, 2 events" in remote.run("verify", f"{url}/{receipt.key}")
    assert "as its manifest says" in remote.run("verify", f"{url}/{receipt.manifest_key}")
    assert remote.run("verify", url).count("as its manifest says") == 3
    assert remote.run("verify", f"{url}/objects").count(": ok, ") == 3
    assert '"e0"' in remote.run("cat", f"{url}/{receipt.key}", "--json")
    assert "2" in remote.run("info", f"{url}/{receipt.key}")
    assert "there are none at" in remote.run("verify", f"{url}/manifests/date=1999-01-01", code=1)


def test_a_copy_of_a_url_does_not_outlast_the_command(
    remote: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its temporary directory is removed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    remote.run("verify", remote.target.url)
    assert list((tmp_path / "tmp").iterdir()) == []
