"""The output of commands about announcements, and the validation of their settings."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bundles import store
from tests.daemons import COMMAND, command, command_environment
from tests.nats_server import NatsServer, nats_server
from tests.ship.rig import directory_target, fill
from tests.ship.test_commands import Place

from ergo_capture.config import ConfigError, parse

pytest.importorskip("nats")


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """Return a server with the stream."""
    with nats_server() as found:
        asyncio.run(found.make_stream(window=3600))
        yield found


def announcing(directory: Path, url: str) -> Place:
    """Return a place with three bundles whose configuration announces."""
    place = Place(directory, directory_target(directory / "store"))
    fill(place.state, 3)
    place.config.write_text(f'{place.config.read_text()}\n[ship.announce]\nservers = ["{url}"]\ntimeout = "20s"\n')
    return place


def test_once_ships_and_announces_and_status_says_what_waits(tmp_path: Path, server: NatsServer) -> None:
    """The exit code is 1 while something waits."""
    place = announcing(tmp_path, server.url)
    server.kill()
    said = place.run("ship", "once", code=1)
    assert "archive: shipped 3 bundles" in said
    assert "announced 0 bundles, 3 left" in said
    assert f"Error: connect to {server.url}" in said
    assert "  to announce  3 bundles, the oldest for" in place.run("ship", "status")
    figures = json.loads(place.run("ship", "status", "--json"))
    assert (figures["unannounced"], figures["backlog_bundles"]) == (3, 0)
    assert figures["oldest_unannounced_seconds"] > 0
    server.start()
    assert place.run("ship", "once").splitlines()[-1] == "announced 3 bundles"
    assert "  to announce  0 bundles\n" in place.run("ship", "status")
    assert json.loads(place.run("ship", "status", "--json"))["unannounced"] == 0
    assert len(server.held()) == 3


def test_put_announces_too(tmp_path: Path, server: NatsServer) -> None:
    """Each bundle is announced once."""
    place = announcing(tmp_path, server.url)
    path = store(tmp_path / "salvaged", "rescued", ended="salvaged")
    assert place.run("ship", "put", str(path)).splitlines()[-1] == "announced 1 bundle"
    assert place.run("ship", "put", str(path)).splitlines()[-1] == "announced 0 bundles"
    ((_, _, body),) = server.held()
    assert (body["session"], body["ended"]) == ("rescued", "salvaged")


def test_check_looks_at_the_stream(tmp_path: Path, server: NatsServer) -> None:
    """The exit code is 1 if nothing can be announced."""
    place = announcing(tmp_path, server.url)
    assert place.run("ship", "check").splitlines()[-4:] == [
        "announcements: ergo.bundles",
        f"  connected to {server.url}",
        "  stream BUNDLES takes ergo.bundles.default",
        "  it drops repetitions within 3600 s",
    ]
    server.kill()
    assert f"failed: connect to {server.url}" in place.run("ship", "check", code=1)


def test_a_bundle_that_must_be_shipped_is_deleted_only_once_it_is_announced(tmp_path: Path, server: NatsServer) -> None:
    """If it were deleted earlier, its announcement would be lost with its receipt."""
    place = announcing(tmp_path, server.url)
    retention = '[retention]\nshipped_to = ["archive"]\nmax_bundles = 1\n'
    place.config.write_text(place.config.read_text() + retention)
    server.kill()
    place.run("ship", "once", code=1)
    assert "deleted" not in place.run("bundles", "prune")
    assert len(list((place.state / "bundles").glob("*/*.manifest.json"))) == 3
    server.start()
    place.run("ship", "once")
    place.run("bundles", "prune")
    assert len(list((place.state / "bundles").glob("*/*.manifest.json"))) == 1


@pytest.mark.parametrize("package", ["nats", "nkeys"])
def test_a_missing_extra_is_named(tmp_path: Path, package: str) -> None:
    """The service fails at its start, and `config check` says it."""
    place = announcing(tmp_path, "nats://127.0.0.1:1")
    (tmp_path / "lib" / package).mkdir(parents=True)
    (tmp_path / "lib" / package / "__init__.py").write_text("raise ImportError('none')")
    environment = command_environment()
    environment["PYTHONPATH"] = f"{tmp_path / 'lib'}:{environment.get('PYTHONPATH', '')}"
    for arguments, code in ((["ship", "run"], 78), (["config", "check"], 0)):
        ran = subprocess.run(
            [*COMMAND, *arguments, "--config", str(place.config)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == code, ran.stderr
        assert "pip install 'ergo-capture[nats]'" in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('servers = ["http://x"]', "`servers` must be tls://HOST:PORT or nats://HOST:PORT"),
        ('servers = ["tls://me:secret@x"]', "without user and password"),
        ('subject = "ergo.*"', "`subject` must be tokens"),
        ('subject = "ergo..bundles"', "`subject` must be tokens"),
        ('subject = "$JS.API"', "`subject` must be tokens"),
        ('timeout = "1ms"', "`timeout` must be at least"),
        ('server = "x"', "there is no setting `ship.announce.server`"),
    ],
)
def test_an_invalid_setting_is_refused(text: str, part: str) -> None:
    """The error names the setting, and does not repeat a password."""
    with pytest.raises(ConfigError) as caught:
        parse(f"[ship.announce]\n{text}\n", "test")
    assert part in caught.value.message
    assert "secret" not in caught.value.message


def test_config_check_warns_of_announcements_that_cannot_be_or_are_in_the_clear(tmp_path: Path) -> None:
    """Without a target nothing is shipped or announced; a password needs TLS, except on loopback."""
    config = tmp_path / "config.toml"

    def warned(text: str) -> str:
        config.write_text(text)
        ran = command("config", "check", str(config))
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    assert "nothing is shipped, so nothing is announced" in warned('[ship.announce]\nservers = ["tls://n"]\n')
    target = f'[ship.targets.a]\nurl = "{(tmp_path / "store").as_uri()}"\n'
    table = '[ship.announce]\ncredentials = "x"\nservers = ["{}"]\n'
    assert "in the clear" in warned(target + table.format("nats://n:4222"))
    for server in ("nats://127.0.0.1:4222", "nats://localhost", "nats://[::1]:4222", "tls://n"):
        assert "in the clear" not in warned(target + table.format(server))
