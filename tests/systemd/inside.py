"""The installed service under a systemd in a box; run by ``test_units.py`` only.

The tests share one installation and go in order: what an operator does from installing to stopping.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.systemd.unit import CONFIG, STATE, Unit, documented, said

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, RunTermination, decode_bundle, manual
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient

pytestmark = pytest.mark.inside

COMMAND = "/usr/local/bin/ergo-capture"
SOCKET = Path("/run/ergo-capture/capture.sock")
UNIT = "ergo-capture.service"
_unit = Unit(UNIT)
run, log, shown, until, configured = _unit.run, _unit.log, _unit.shown, _unit.until, _unit.configured


def drop_in(topic: str, name: str) -> Path:
    """Write the drop-in of a topic of the manual; return its path."""
    block = re.search(rf"^```ini {name}\n(.*?)^```$", manual.read(topic), re.DOTALL | re.MULTILINE)
    assert block is not None
    path = Path(f"/etc/systemd/system/{UNIT}.d") / name
    assert str(path) in manual.read(topic)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block[1])
    return path


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """Install the service as the manual says; the program itself is already installed."""
    for line in documented("systemd", "systemd install"):
        if "venv" not in line and "pip" not in line:
            run("sh", "-c", line)
    yield
    run("systemctl", "stop", UNIT, "ergo-capture.socket", fails=True)


def test_the_documented_commands_start_the_service() -> None:
    """After a second installation it must be restarted, as `systemd install` says."""
    assert shown("ActiveState") == "active"
    assert "systemctl restart ergo-capture.service" in run(COMMAND, "systemd", "install")
    assert "Warning" not in said(COMMAND, "config", "check").stderr


def test_asking_a_stopped_service_does_not_start_it() -> None:
    """Each command says that it is stopped, also after the daemon was killed."""
    run("systemctl", "stop", UNIT)
    run("systemctl", "start", "ergo-capture.socket")
    commands = [["status"], ["metrics"], ["flush"], ["reload"], ["shutdown"], ["tap", "default"]]
    for words in commands:
        done = said(COMMAND, *words)
        assert (done.returncode, "the daemon is stopped; systemd listens on" in done.stderr) == (1, True), done.stderr
        assert "systemctl start ergo-capture" in done.stderr
    run("sh", "-c", f"rm -f {SOCKET.with_name('control.sock')}")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(SOCKET.with_name("control.sock")))
    os.chown(SOCKET.with_name("control.sock"), pwd.getpwnam("ergo-capture").pw_uid, -1)
    assert "the daemon is stopped" in said(COMMAND, "status", "--socket", str(SOCKET)).stderr
    assert (shown("ActiveState"), shown("NRestarts")) == ("inactive", "0")


def test_a_client_that_connects_first_starts_the_service() -> None:
    """Only the socket had been started."""
    assert shown("ActiveState") == "inactive"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(SOCKET))
        client.settimeout(10)
        client.sendall(b'{"type":"hello","protocol":"ergo-capture.v1"}\n')
        assert b'"welcome"' in client.recv(4096), log()
    until(lambda: shown("ActiveState") == "active", "ready was never said")
    assert "sessions" in shown("StatusText")


def test_files_and_sockets_have_the_modes_they_should() -> None:
    """The state directory is 0750 of the daemon's user, the socket 0660 of the group, the control socket 0600."""
    user = pwd.getpwnam("ergo-capture")
    found = STATE.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o750, user.pw_uid)
    assert (stat.S_IMODE(SOCKET.stat().st_mode), SOCKET.stat().st_gid) == (0o660, user.pw_gid)
    assert stat.S_IMODE(SOCKET.with_name("control.sock").stat().st_mode) == 0o600


def test_log_lines_have_their_priority_in_the_journal() -> None:
    """The lines are JSON, and systemd takes their PRIORITY from the ``<N>`` prefix."""
    run("journalctl", "--sync")
    lines = [json.loads(line) for line in run("journalctl", "-o", "json", "--all", "-u", UNIT).splitlines()]
    ready = [line for line in lines if "daemon.ready" in str(line["MESSAGE"])]
    assert ready
    assert ready[-1]["PRIORITY"] == "6"
    assert json.loads(ready[-1]["MESSAGE"])["event"] == "daemon.ready"


def test_the_operator_is_answered_on_the_control_socket() -> None:
    """It answers for the status, metrics, and reloads by the unit, which waits, and by the command."""
    assert "serving" in run(COMMAND, "status", "--config", str(CONFIG))
    assert 'ergo_capture_ready{state_directory="/var/lib/ergo-capture"} 1.0' in run(
        COMMAND, "metrics", "--config", str(CONFIG)
    )
    before = CONFIG.read_text()
    CONFIG.write_text(before.replace("#max_clients = 256", "max_clients = 255"))
    run("systemctl", "reload", UNIT)
    assert "config.reloaded" in log()
    assert shown("ActiveState") == "active"
    CONFIG.write_text(before)
    assert run(COMMAND, "reload", "--config", str(CONFIG)) == "applied limits.max_clients\n"


def test_a_reload_that_is_refused_fails() -> None:
    """`systemctl reload` fails, and the daemon keeps its configuration."""
    before = CONFIG.read_text()
    CONFIG.write_text(before + "\n[bogus]\n")
    try:
        assert said("systemctl", "reload", UNIT).returncode == 1
        assert "there is no setting `bogus`" in log()
        assert shown("ActiveState") == "active"
    finally:
        CONFIG.write_text(before)
    run("systemctl", "reload", UNIT)


async def stream(trouble: list[Callable[[], None]]) -> None:
    """Send while ``trouble`` runs; check that afterwards every event is in the bundle once."""
    sent = 0

    async def send(client: CaptureClient, count: int) -> None:
        nonlocal sent
        for _ in range(count):
            at = EventTime(sent, 0)
            await client.send(ExternalEvent.with_payload(f"e{sent}", ExternalEventKind.DataAvailable, at, b'{"a":1}'))
            sent += 1

    async with CaptureClient(SOCKET, window=64, give_up_after=60) as client:
        await client.open("default")
        for make_trouble in trouble:
            await send(client, 300)
            troubled = asyncio.create_task(asyncio.to_thread(make_trouble))
            while not troubled.done():
                await send(client, 20)
                await asyncio.sleep(0.005)
            await troubled
        await send(client, 300)
        published = await client.close()
    bundle = decode_bundle(Path(published.bundle).read_bytes())
    assert [record.event_id for record in bundle.events] == [f"e{n}" for n in range(sent)]
    assert check(Path(published.bundle))["ok"]


def main_pid() -> int:
    """Return the daemon's process id."""
    return int(shown("MainPID"))


def restart() -> None:
    """Restart the unit, as an upgrade does."""
    run("systemctl", "restart", UNIT)


def kill_and_wait(number: int = signal.SIGKILL) -> None:
    """Kill the daemon and wait until systemd has started another one."""
    before = main_pid()
    os.kill(before, number)
    until(lambda: main_pid() not in (0, before) and shown("ActiveState") == "active", "it did not come back")


def test_nothing_is_refused_or_lost_across_restart_and_kill_9() -> None:
    """P1, P10: a client streams while the service is restarted and killed; connecting is never refused."""
    refused: list[OSError] = []
    over = False

    def knock() -> None:
        while not over:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(SOCKET))
            except OSError as error:
                refused.append(error)
            time.sleep(0.02)

    async def troubled() -> None:
        nonlocal over
        knocking = asyncio.create_task(asyncio.to_thread(knock))
        try:
            await stream([restart, kill_and_wait, kill_and_wait])
        finally:
            over = True
            await knocking

    asyncio.run(troubled())
    assert refused == []


def test_a_daemon_that_hangs_is_restarted_by_the_watchdog() -> None:
    """After WatchdogSec a stopped process is killed, and the next one continues its sessions."""
    impatient = Path(f"/etc/systemd/system/{UNIT}.d/90-test.conf")
    impatient.parent.mkdir(parents=True, exist_ok=True)
    impatient.write_text("[Service]\nWatchdogSec=2s\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    asyncio.run(stream([lambda: kill_and_wait(signal.SIGSTOP)]))
    impatient.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)


def test_the_documented_text_file_is_written_under_the_unit() -> None:
    """Without the drop-in, the check and the log name the path; with it, the file is in node_exporter's directory."""
    textfile = Path("/var/lib/prometheus/node-exporter/ergo-capture.prom")
    textfile.parent.mkdir(parents=True, exist_ok=True)
    with configured(f'[metrics]\ntextfile = "{textfile}"\n'):
        until(lambda: "metrics.failed" in log(), "the failure was not logged")
        failure = next(line for line in log().splitlines() if "metrics.failed" in line)
        assert "write metrics textfile" in failure
        assert "ReadWritePaths=" in failure
        assert "space" not in failure
        warned = said(COMMAND, "config", "check").stderr
        assert f"may not write to '{textfile.parent}'" in warned
        assert f"ReadWritePaths={textfile.parent}" in warned
        # The unit's own check, before the start, tries to write.
        assert any("Warning: write metrics textfile" in line for line in log().splitlines())
        added = drop_in("metrics", "metrics.conf")
        for line in documented("metrics", "chgrp"):
            run("sh", "-c", line)
        until(textfile.exists, "the text file was not written")
        until(lambda: "_ready{" in textfile.read_text() and 'capture"} 1.0' in textfile.read_text(), "it is not ready")
        assert "Warning" not in said(COMMAND, "config", "check").stderr
    added.unlink()
    run("systemctl", "daemon-reload")
    assert not textfile.exists()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_an_engine_that_compiles_at_run_time_is_explained_and_runs_with_the_documented_drop_in() -> None:
    """Node cannot run under MemoryDenyWriteExecute=."""
    engine = Path("/opt/ergo-capture/engine.js")
    engine.write_text(NODE_ENGINE)
    with configured(
        f'[graphs.default]\nengine = {{ kind = "process", command = ["{shutil.which("node")}", "{engine}"] }}\n'
    ):
        until(lambda: "engine.away" in log(), "the engine's death was not logged")
        away = next(line for line in log().splitlines() if "engine.away" in line)
        assert "compiles at run time" in away
        assert "MemoryDenyWriteExecute=no" in away
        warned = said(COMMAND, "config", "check").stderr
        assert "'node' compiles at run time" in warned
        assert "engine.conf" in warned
        added = drop_in("systemd", "engine.conf")
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", UNIT)
        assert "Warning" not in said(COMMAND, "config", "check").stderr
        events = '{"event_id":"a","kind":"Command","at":{"secs":0,"nanos":0}}'
        sent = run("sh", "-c", f"echo '{events}' | {COMMAND} send -")
        (decision,) = decode_bundle(Path(sent.splitlines()[-1]).read_bytes()).decisions
        assert decision.termination is RunTermination.Completed
    added.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)


NODE_ENGINE = """
const say = (message) => process.stdout.write(JSON.stringify(message) + "\\n");
say({ type: "ready", protocol: "ergo-engine.v1", graphs: ["default"], runtime_provenance: "rpv1:node" });
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  say({ type: "ran", id: JSON.parse(line).id, termination: "Completed", effects: [] });
});
"""


def test_a_configuration_that_names_hidden_files_is_warned_of() -> None:
    """Homes and temporary directories are hidden from the unit, but not from the operator who runs the check."""
    hidden = Path("/root/engine.py")
    hidden.write_text("")
    configuration = CONFIG.read_text()
    CONFIG.write_text(
        f'[graphs.a]\nengine = {{ kind = "process", command = ["/usr/bin/python3", "{hidden}"] }}\n'
        '[graphs.b]\nengine = { kind = "socket", path = "/tmp/engine.sock" }\n'
    )
    warned = said(COMMAND, "config", "check").stderr
    CONFIG.write_text(configuration)
    assert f"graph 'a': the service {UNIT} cannot see '{hidden}'" in warned
    assert f"graph 'b': the service {UNIT} cannot see '/tmp/engine.sock'" in warned


def test_a_command_with_spaces_and_signs_in_its_path_is_run() -> None:
    """The signs have a meaning in unit files: specifiers, variables, comments, ends of words."""
    place = Path("/srv/100% of $HOME ; #1 ergo")
    place.mkdir(parents=True)
    wrapper = place / "ergo-capture"
    wrapper.write_text('#!/bin/sh\nexec /opt/ergo-capture/bin/ergo-capture "$@"\n')
    wrapper.chmod(0o755)
    try:
        run(COMMAND, "systemd", "install", "--command", str(wrapper))
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", UNIT)
        assert str(wrapper) in run("systemctl", "show", "-p", "ExecStart", UNIT)
        assert "ready" in run(COMMAND, "status", "--json") or shown("ActiveState") == "active"
        assert "Warning" not in said(COMMAND, "config", "check").stderr
    finally:
        run(COMMAND, "systemd", "install", "--command", "/opt/ergo-capture/bin/ergo-capture")
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", UNIT)


def test_an_upgrade_replaces_the_control_socket_that_systemd_held() -> None:
    """The unit of 0.1.0 is removed, after it was stopped, before the daemon binds the same path."""
    former = Path("/usr/local/lib/systemd/system/ergo-capture-control.socket")
    former.write_text(
        f"[Socket]\nListenStream={SOCKET.with_name('control.sock')}\nFileDescriptorName=control\nService={UNIT}\n"
        "SocketUser=ergo-capture\nSocketMode=0600\nRemoveOnStop=yes\n[Install]\nWantedBy=sockets.target\n"
    )
    run("systemctl", "stop", UNIT)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--now", former.name)
    said_by_install = run(COMMAND, "systemd", "install")
    assert f"removed {former}" in said_by_install
    assert f"removed /etc/systemd/system/sockets.target.wants/{former.name}" in said_by_install
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    assert "serving" in run(COMMAND, "status")
    assert run("systemctl", "show", "--value", "-p", "ActiveState", former.name).strip() == "inactive"


def test_a_member_of_the_group_sends_and_reads_without_naming_paths() -> None:
    """A user who is not root and has no daemon runs plain `send`, `bundles list` and `report`."""
    run("useradd", "--create-home", "--groups", "ergo-capture", "member")
    events = '{"event_id":"a","kind":"Command","at":{"secs":0,"nanos":0}}'

    def as_member(command: str) -> subprocess.CompletedProcess[str]:
        return said("runuser", "-u", "member", "--", "sh", "-c", f"cd; {command}")

    sent = as_member(f"echo '{events}' | ergo-capture send -")
    assert sent.returncode == 0, sent.stderr
    bundle = Path(sent.stdout.splitlines()[-1])
    assert bundle.is_relative_to(STATE)
    assert bundle.name.removesuffix(".capture.json") in as_member("ergo-capture bundles list").stdout
    refused = as_member(f"ergo-capture report {bundle}")
    assert refused.returncode == 1
    assert "Permission denied" in refused.stderr
    assert "permissions" in refused.stderr
    assert "space" not in refused.stderr
    assert as_member(f"ergo-capture report {bundle} -o run.html").returncode == 0


def test_a_process_engine_runs_under_the_same_rules() -> None:
    """It is the README's engine; the bundle has its provenance."""
    engine = Path("/opt/ergo-capture/engine.py")
    engine.write_text(Path("tests/engine/example_engine.py").read_text())
    command = '["/opt/ergo-capture/bin/python3", "/opt/ergo-capture/engine.py"]'

    async def one() -> str:
        async with CaptureClient(SOCKET, give_up_after=30) as client:
            await client.open("default")
            payload = b'{"price": 10.5}'
            await client.send(ExternalEvent.with_payload("a", ExternalEventKind.Command, EventTime(0, 0), payload))
            return (await client.close()).bundle

    with configured(f'[graphs.default]\nengine = {{ kind = "process", command = {command} }}\n'):
        bundle = decode_bundle(Path(asyncio.run(one())).read_bytes())
    assert bundle.runtime_provenance == "rpv1:example-1"
    assert len(bundle.decisions[0].effects) == 1


def test_a_stop_leaves_the_engine_until_the_last_run_is_back() -> None:
    """P10: the signal is for the daemon only; a pending run completes."""
    engine = Path("/opt/ergo-capture/slow.py")
    example = Path("tests/engine/example_engine.py").read_text()
    engine.write_text(example.replace("    run = ", "    __import__('time').sleep(2)\n    run = ", 1))
    command = '["/opt/ergo-capture/bin/python3", "/opt/ergo-capture/slow.py"]'

    async def hold() -> None:
        async with CaptureClient(SOCKET, give_up_after=30) as client:
            await client.open("default")
            await client.send(ExternalEvent.mechanical_at("a", ExternalEventKind.Command, EventTime(0, 0)))
            await client.drain()
            await asyncio.to_thread(run, "systemctl", "stop", UNIT)

    before = set((STATE / "bundles").rglob("*.capture.json"))
    with configured(f'[graphs.default]\nengine = {{ kind = "process", command = {command} }}\n'):
        asyncio.run(hold())
    (bundle,) = set((STATE / "bundles").rglob("*.capture.json")) - before
    (decision,) = decode_bundle(bundle.read_bytes()).decisions
    assert decision.termination is RunTermination.Completed


def test_a_wrong_configuration_does_not_start_and_says_why() -> None:
    """The exit code is 78, so it is not restarted; the reason is in the systemd journal."""
    kept = CONFIG.read_text()
    CONFIG.write_text("[jurnal]\n")
    run("systemctl", "restart", UNIT, fails=True)
    assert shown("ActiveState") == "failed"
    assert "jurnal" in log()
    CONFIG.write_text(kept)
    run("systemctl", "reset-failed", UNIT)
    run("systemctl", "start", UNIT)


def test_stop_publishes_and_ends_with_zero_within_the_drain_time() -> None:
    """P10: an open session is in a bundle when ``systemctl stop`` returns."""

    async def hold() -> None:
        async with CaptureClient(SOCKET, give_up_after=0) as client:
            await client.open("default")
            event = ExternalEvent.mechanical_at("only", ExternalEventKind.Command, EventTime(0, 0))
            await client.send(event)
            await client.drain()
            await asyncio.to_thread(run, "systemctl", "stop", UNIT)

    before = set((STATE / "bundles").rglob("*.capture.json"))
    asyncio.run(hold())
    assert (shown("ActiveState"), shown("ExecMainStatus"), shown("Result")) == ("inactive", "0", "success")
    (bundle,) = set((STATE / "bundles").rglob("*.capture.json")) - before
    assert {stat.S_IMODE(path.stat().st_mode) for path in (STATE / "journal").iterdir()} == {0o640}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o640
    assert json.loads(bundle.with_name(bundle.name.replace(".capture.", ".manifest.")).read_text())["events"] == 1
