"""Channels whose behaviour is not in the conformance data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.egress.channels import heard, puppet, ready
from tests.processes import is_alive, wait_until

from ergo_capture.adapter.egress import EgressConfig, EgressFailure, Route
from ergo_capture.egress.channel import EgressLifecycleError
from ergo_capture.egress.channel_set import ChannelSet
from ergo_capture.kernel.effects import IntentField, IntentRecord, Value

INTENT = IntentRecord("send", "id-1", ())


def channel_set(command: tuple[str, ...], *, millis: int = 20_000, grace: float = 20.0, **more: Any) -> ChannelSet:
    """Return a set of one channel."""
    return ChannelSet(EgressConfig(millis, {"a": command}, {"send": Route("a", None)}), grace=grace, **more)


async def failure_of(place: Path, steps: list[dict[str, Any]], **more: Any) -> EgressFailure:
    """Return the error of dispatching an intent that is answered with these steps."""
    channels = channel_set(puppet(place, "a", {"start": [ready("send")], "intents": [steps]}), **more)
    await channels.start()
    with pytest.raises(EgressFailure) as caught:
        await channels.dispatch(INTENT)
    assert not channels.is_up
    return caught.value


async def test_an_answer_that_is_not_utf8_is_an_io_failure(tmp_path: Path) -> None:
    """The words are the reference's."""
    failure = await failure_of(tmp_path, [{"bytes_hex": "ff0a"}])
    assert str(failure) == "I/O failure on channel 'a': stream did not contain valid UTF-8"


async def test_an_endless_answer_is_an_io_failure(tmp_path: Path) -> None:
    """Memory stays bounded."""
    failure = await failure_of(tmp_path, [{"send_without_newline": "x" * (3 << 20)}])
    assert (failure.reason, "longer than" in str(failure)) == ("egress_io", True)


async def test_a_last_answer_needs_no_newline(tmp_path: Path) -> None:
    """The end of the output ends the answer."""
    steps: list[dict[str, Any]] = [{"ack_without_newline": {"egress_ref": "r"}}, {"close_stdout": None}]
    channels = channel_set(puppet(tmp_path, "a", {"start": [ready("send")], "intents": [steps]}))
    await channels.start()
    assert (await channels.dispatch(INTENT)).egress_ref == "r"
    await channels.kill()


async def test_a_channel_that_reads_nothing_times_out(tmp_path: Path) -> None:
    """The pipe to it is full, and the intent was never written."""
    channels = channel_set(puppet(tmp_path, "a", {"start": [ready("send"), {"sleep_ms": 3_600_000}]}), millis=50)
    await channels.start()
    long = IntentRecord("send", "id-1", (IntentField("x", Value(String="x" * (1 << 20))),))
    with pytest.raises(EgressFailure) as caught:
        await channels.dispatch(long)
    assert (caught.value.reason, caught.value.intent_id) == ("egress_ack_timeout", "id-1")


async def test_a_failed_dispatch_kills_every_channel_with_its_children(tmp_path: Path) -> None:
    """The channels get no end frame."""
    script = f'sleep 3600 & echo $! > {tmp_path}/child; echo "$READY"; cat > {tmp_path}/heard'
    said = ready("send")["send"]
    config = EgressConfig(
        20_000,
        {
            "a": puppet(tmp_path, "a", {"start": [ready("send")], "intents": [[{"exit": 1}]]}),
            "b": ("sh", "-c", f"READY='{said}'; {script}"),
        },
        {"send": Route("a", None)},
    )
    channels = ChannelSet(config)
    await channels.start()
    pids = [*channels.pids.values(), int((tmp_path / "child").read_text())]
    with pytest.raises(EgressFailure):
        await channels.dispatch(INTENT)
    await anyio.to_thread.run_sync(wait_until, lambda: not any(map(is_alive, pids)))
    assert (tmp_path / "heard").read_text() == ""


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("/nowhere/channel",), "startup failed: spawn '/nowhere/channel': No such file or directory"),
        (("sh", "-c", "exit 3"), "startup failed: channel closed stdout before ready handshake"),
        (("sh", "-c", "echo hi; sleep 3600"), "protocol violation: invalid startup frame"),
        (("sh", "-c", "printf '\\377\\n'; sleep 3600"), "I/O failure: stream did not contain valid UTF-8"),
    ],
)
async def test_a_channel_that_does_not_start_is_explained(command: tuple[str, ...], complaint: str) -> None:
    """No channel is left running."""
    channels = channel_set(command)
    with pytest.raises(EgressLifecycleError, match=complaint.replace("'", ".")):
        await channels.start()
    assert channels.pids == {}


async def test_a_channel_that_says_nothing_does_not_start() -> None:
    """It has as much time as the reference gives it."""
    channels = channel_set(("sleep", "3600"), grace=0.05)
    with pytest.raises(EgressLifecycleError, match="did not emit ready frame within 50ms"):
        await channels.start()


async def test_what_a_channel_writes_to_its_standard_error_is_reported(tmp_path: Path) -> None:
    """Each line is reported with the name of the channel."""
    said: list[tuple[str, str]] = []
    script = {"start": [{"stderr": "one\ntwo\n"}, ready("send")]}
    channels = channel_set(puppet(tmp_path, "a", script), report=lambda name, line: said.append((name, line)))
    await channels.start()
    await channels.finish()
    assert said == [("a", "one"), ("a", "two")]
    assert heard(tmp_path, "a") == [{"type": "end"}]
