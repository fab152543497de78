"""``ergo-capture ingress``: a channel in front of another, as a process beside a real daemon."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command, command_environment, event, short_directory

from ergo_capture import decode_bundle

HELLO = '{"type":"hello","protocol":"ergo-driver.v0"}'
END = '{"type":"end"}'


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon for the tests that leave it alone."""
    with short_directory() as place:
        broken = 'engine = { kind = "process", command = ["false"] }'
        with DaemonProcess(place, place / "state", config=f"[graphs.default]\n[graphs.real]\n{broken}\n") as running:
            yield running.start()


def line(event_id: str, **fields: Any) -> str:
    """Return an event's line, spelled as no JSON writer of this package would spell it."""
    frame = event(event_id, payload={"x": 1})
    frame["event"] |= {"semantic_kind": "tick"} | fields
    return json.dumps(frame, separators=(" , ", " : "))


def printing(*lines: str, end: str = "\n", code: int = 0) -> list[str]:
    """Return a channel that prints lines and exits."""
    text = "\n".join(lines) + end
    return [sys.executable, "-c", f"import sys; sys.stdout.write({text!r}); sys.exit({code})"]


def ingress(
    daemon: DaemonProcess, *channel: str, options: tuple[str, ...] = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a channel behind ``ingress`` to its end."""
    behind = ["--", *channel] if channel else []
    return command("ingress", "--socket", str(daemon.socket), *options, *behind, **more)


def started(socket: Path, *channel: str) -> subprocess.Popen[bytes]:
    """Start a channel behind ``ingress``."""
    return subprocess.Popen(
        [*COMMAND, "ingress", "--socket", str(socket), "--", *channel],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=command_environment(),
        start_new_session=True,
    )


def session_of(stderr: str) -> str:
    """Return the session that standard error names."""
    return next(text.split()[-1] for text in stderr.splitlines() if text.startswith("ergo-capture ingress: session "))


def capture_of(daemon: DaemonProcess, stderr: str) -> tuple[list[str], dict[str, Any]]:
    """Return the event ids of the session's bundle, and its manifest."""
    session = session_of(stderr)
    deadline = time.monotonic() + PATIENCE
    while not (found := list((daemon.state / "bundles").rglob(f"{session}.manifest.json"))):
        assert time.monotonic() < deadline, stderr
        time.sleep(0.01)
    manifest = json.loads(found[0].read_text())
    return [one.event_id for one in decode_bundle(found[0].with_name(manifest["bundle"]).read_bytes()).events], manifest


def test_lines_are_handed_on_unchanged_and_events_are_captured(daemon: DaemonProcess) -> None:
    """Standard error says where; the manifest says that no run decided them."""
    lines = [HELLO, line("a"), '["event",["b","Pump",[1,2],"tock",{}]]', line("c", at=[0, 5]), END]
    ran = ingress(daemon, *printing(*lines), options=("--label", "run=17"))
    assert (ran.returncode, ran.stdout.splitlines()) == (0, lines), ran.stderr
    ids, manifest = capture_of(daemon, ran.stderr)
    assert ids == ["a", "b", "c"]
    assert (manifest["ended"], manifest["decided_by"], manifest["engine"]) == (
        "complete",
        "fixed, not the run",
        "fixed",
    )
    assert manifest["labels"] == {"run": "17"}
    assert manifest["bundle"] in ran.stderr.splitlines()[-1]


def test_the_engine_of_the_graph_is_not_asked(daemon: DaemonProcess) -> None:
    """It may be away, and would run the episodes a second time."""
    ran = ingress(daemon, *printing(HELLO, line("a"), END), options=("--graph", "real"))
    assert ran.returncode == 0, ran.stderr
    ids, manifest = capture_of(daemon, ran.stderr)
    assert (ids, manifest["graph"], manifest["decided_by"]) == (["a"], "real", "fixed, not the run")


def test_commands_repeat_that_no_run_decided(daemon: DaemonProcess, tmp_path: Path) -> None:
    """``info``, ``report`` and ``replay``."""
    ran = ingress(daemon, *printing(HELLO, line("a"), END))
    _, manifest = capture_of(daemon, ran.stderr)
    bundle = str(daemon.state / "bundles" / "default" / manifest["bundle"])
    assert "fixed, not the run" in command("info", bundle).stdout
    replayed = command("replay", bundle, "--engine", "fixed:TimedOut")
    assert replayed.returncode == 4
    assert "note: decided by: fixed, not the run" in replayed.stdout
    assert json.loads(command("replay", bundle, "--json").stdout)["decided_by"] == "fixed, not the run"
    page = tmp_path / "run.html"
    assert command("report", bundle, "-o", str(page)).returncode == 0
    packed = re.search(r'"([A-Za-z0-9+/=]{100,})"', page.read_text()) or re.search(
        r">([A-Za-z0-9+/=]{100,})<", page.read_text()
    )
    assert packed is not None
    assert b"fixed, not the run" in zlib.decompress(base64.b64decode(packed[1]))


def test_a_rejected_event_is_named_and_not_handed_on(daemon: DaemonProcess) -> None:
    """The host would lose the capture by it; the exit code is 3."""
    lines = [HELLO, line("a"), line("a"), line("b", payload=[]), line("c"), END]
    ran = ingress(daemon, *printing(*lines))
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout.splitlines() == [HELLO, lines[1], lines[4], END]
    assert "not passed on: event 'a': duplicate_event_id: " in ran.stderr
    assert "not passed on: event 'b': invalid_payload: " in ran.stderr
    assert "2 events durable, 2 events rejected" in ran.stderr
    assert capture_of(daemon, ran.stderr)[0] == ["a", "c"]


@pytest.mark.parametrize(
    "lines",
    [
        [HELLO, line("a"), "nonsense", line("b"), END],
        [HELLO, line("a"), "", line("b")],
        [HELLO, HELLO, END],
        [END],
        [line("a"), HELLO],
        [HELLO, line("a"), END, line("b")],
        [HELLO, line("a"), '{"type":'],
        ['{"type":"hello","protocol":"ergo-driver.v9"}', END],
    ],
    ids=["nonsense", "empty", "two hellos", "end first", "event first", "event after end", "torn", "version"],
)
def test_what_is_no_event_of_a_run_is_handed_on_in_its_place(daemon: DaemonProcess, lines: list[str]) -> None:
    """The host answers to it as it would without this program."""
    ran = ingress(daemon, *printing(*lines, end=""))
    assert (ran.returncode, ran.stdout) == (0, "\n".join(lines)), ran.stderr


def test_a_stream_without_an_end_is_interrupted(daemon: DaemonProcess) -> None:
    """Nothing is added to it; it ends as the channel did."""
    ran = ingress(daemon, *printing(HELLO, line("a"), code=7))
    assert (ran.returncode, ran.stdout.splitlines()) == (7, [HELLO, line("a")])
    assert capture_of(daemon, ran.stderr)[1]["ended"] == "interrupted"


def test_a_channel_that_is_killed_ends_it_by_the_same_signal(daemon: DaemonProcess) -> None:
    """The host reports how a driver ended."""
    ran = ingress(daemon, "sh", "-c", "kill -USR1 $$")
    assert ran.returncode == -signal.SIGUSR1
    assert ran.stdout == ""


def test_signals_are_passed_on(daemon: DaemonProcess) -> None:
    """The channel decides what it makes of them."""
    script = f"end() {{ echo '{END}'; exit 5; }}; trap end TERM; echo '{HELLO}'; while :; do sleep 0.05; done"
    running = started(daemon.socket, "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline().decode().strip() == HELLO
    running.terminate()
    out, _ = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out.decode().strip()) == (5, END)


def test_several_channels_are_merged_in_the_order_of_the_capture(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The host sees one hello, one end, and the events in the order in which they became durable."""
    feeds = []
    for name in "xyz":
        script = tmp_path / f"{name}.py"
        lines = [HELLO, *(line(f"{name}{n}") for n in range(200)), END]
        script.write_text(f"for line in {lines!r}: print(line, flush=True)\n")
        feeds += ["--feed", f"{sys.executable} {script}"]
    ran = ingress(daemon, options=tuple(feeds))
    assert ran.returncode == 0, ran.stderr
    first, *events, last = ran.stdout.splitlines()
    assert (first, last) == (HELLO, END)
    ids = [json.loads(text)["event"]["event_id"] for text in events]
    assert ids == capture_of(daemon, ran.stderr)[0]
    assert len(ids) == 600
    for name in "xyz":
        assert [i for i in ids if i.startswith(name)] == [f"{name}{n}" for n in range(200)]


def test_a_merged_channel_without_an_end_leaves_the_stream_without_one(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The others are heard to their end; the exit code is that of the one which failed."""
    whole, broken = tmp_path / "whole.py", tmp_path / "broken.py"
    whole.write_text(f"print({HELLO!r}); print({line('a')!r}); print({END!r})")
    broken.write_text(f"import sys; print({HELLO!r}); print({line('b')!r}, end=''); sys.stdout.flush(); sys.exit(9)")
    feeds = ("--feed", f"{sys.executable} {whole}", "--feed", f"{sys.executable} {broken}")
    ran = ingress(daemon, options=feeds)
    assert ran.returncode == 9, ran.stderr
    assert sorted(ran.stdout.splitlines()) == sorted([HELLO, line("a"), line("b")])
    assert capture_of(daemon, ran.stderr)[1]["ended"] == "interrupted"


def test_a_merged_channel_without_a_hello_is_an_error(daemon: DaemonProcess) -> None:
    """Its events could not be told from those of a channel that the host has greeted."""
    ran = ingress(daemon, options=("--feed", "echo x", "--feed", "sleep 60"))
    assert ran.returncode == 1
    assert "its first line is not a hello" in ran.stderr


def test_hello_is_handed_on_while_the_daemon_is_away_and_events_wait() -> None:
    """The host waits five seconds for it; the events go on when the daemon comes."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        running = started(daemon.socket, *printing(HELLO, line("a"), END))
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().decode().strip() == HELLO
        assert b"events wait for it" in running.stderr.readline()
        daemon.start()
        out, err = running.communicate(timeout=PATIENCE)
        assert (running.returncode, out.decode().splitlines()) == (0, [line("a"), END]), err


def test_a_stream_without_events_needs_no_daemon() -> None:
    """Nothing has to be durable."""
    with short_directory() as place:
        running = started(place / "none.sock", *printing(HELLO, END))
        out, _ = running.communicate(timeout=PATIENCE)
        assert (running.returncode, out.decode().splitlines()) == (0, [HELLO, END])


def test_it_can_be_ended_while_events_wait_for_the_daemon() -> None:
    """The channel has ended, and no signal can be passed on to it."""
    with short_directory() as place:
        running = started(place / "none.sock", *printing(HELLO, line("a")))
        assert running.stderr is not None
        assert b"events wait for it" in running.stderr.readline()
        running.terminate()
        out, _ = running.communicate(timeout=PATIENCE)
        assert (running.returncode, out.decode().splitlines()) == (-signal.SIGTERM, [HELLO])


def test_a_refusal_of_the_daemon_ends_it(daemon: DaemonProcess) -> None:
    """Nothing is handed on that is not durable; the channel is ended too."""
    ran = ingress(daemon, "sh", "-c", f"echo '{HELLO}'; exec sleep 60", options=("--graph", "other"))
    # The refusal may come before the channel has said hello.
    assert ran.returncode == 1
    assert ran.stdout.strip() in {"", HELLO}
    assert "Error: graph 'other' is not configured" in ran.stderr


def test_a_program_that_cannot_be_started_is_an_error(daemon: DaemonProcess) -> None:
    """Named, with the reason."""
    ran = ingress(daemon, "/nowhere/at/all")
    assert ran.returncode == 1
    assert "Error: start channel '/nowhere/at/all': No such file" in ran.stderr


def test_a_host_that_is_gone_ends_it(daemon: DaemonProcess) -> None:
    """A channel is ended in the same way, by SIGPIPE; events that were durable by then are captured."""
    script = "n=0; while :; do n=$((n+1)); echo '" + line("N").replace('"N"', "\"'$n'\"") + "'; sleep 0.01; done"
    running = started(daemon.socket, "sh", "-c", f"echo '{HELLO}'; {script}")
    assert running.stdout is not None
    assert running.stderr is not None
    seen = [running.stdout.readline() for _ in range(5)][1:]
    running.stdout.close()
    err = running.stderr.read().decode()
    assert running.wait(PATIENCE) == 141
    running.stderr.close()
    ids, manifest = capture_of(daemon, err)
    assert ids[:4] == [json.loads(text)["event"]["event_id"] for text in seen]
    assert manifest["ended"] == "interrupted"


def test_a_session_goes_on_with_a_channel_that_begins_again(daemon: DaemonProcess) -> None:
    """A new run of the host sees all events, and the session holds each once."""
    running = started(daemon.socket, "sh", "-c", f"printf '%s\\n' '{HELLO}' '{line('a')}'; exec sleep 60")
    assert running.stdout is not None
    assert running.stderr is not None
    assert [running.stdout.readline() for _ in range(2)]
    session = session_of(running.stderr.readline().decode())
    # As the host ends a driver: with all that it has started.
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=PATIENCE)
    lines = [HELLO, line("a"), line("b"), END]
    ran = ingress(daemon, *printing(*lines), options=("--session", session))
    assert (ran.returncode, ran.stdout.splitlines()) == (0, lines), ran.stderr
    assert capture_of(daemon, ran.stderr)[0] == ["a", "b"]


def test_lines_that_are_no_events_of_the_protocol_are_counted(daemon: DaemonProcess) -> None:
    """They are handed on, and whoever believes that they are captured is told."""
    ran = ingress(daemon, *printing('{"event_id":"a","kind":"Pump","at":{"secs":0,"nanos":0}}', line("b")))
    assert (ran.returncode, ran.stdout.count("\n")) == (0, 2)
    assert "2 lines handed on and not captured: events stand between hello and end of ergo-driver.v0" in ran.stderr
