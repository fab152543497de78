"""The names that others import and call exist, are documented, and have the agreed shapes."""

from __future__ import annotations

import inspect
import subprocess
import sys

import msgspec
import pytest
from tests.daemons import command_environment

import ergo_capture
from ergo_capture import (
    ActionEffect,
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    RunTermination,
    decode_bundle,
    encode_bundle,
    library,
)

AGREED = [
    "CaptureBundle",
    "Constraints",
    "ExternalEvent",
    "ExternalEventKind",
    "EventTime",
    "RunTermination",
    "ErrKind",
    "Decision",
    "ActionEffect",
    "CapturingSession",
    "CapturingDecisionLog",
    "DecisionLog",
    "MemoryDecisionLog",
    "Supervisor",
    "RuntimeInvoker",
    "FaultRuntime",
    "CaptureJsonStyle",
    "CaptureWriteError",
    "write_capture_bundle",
    "read_capture_bundle",
    "decode_bundle",
    "encode_bundle",
    "compute_effect_hash",
    "validate_bundle",
    "validate_bundle_strict",
    "replay_checked",
    "replay_checked_strict",
    "compare_decisions",
    "first_divergence",
    "ReplayError",
]


def test_the_package_and_its_library_have_the_same_names() -> None:
    """The names are listed twice, because the package does not import the library before one of them is used."""
    assert ergo_capture.__all__ == library.__all__
    assert {*ergo_capture.__all__} <= {*dir(ergo_capture)}


@pytest.mark.parametrize("name", AGREED)
def test_an_agreed_name_is_public(name: str) -> None:
    """It can be imported from the package, and is listed."""
    assert hasattr(ergo_capture, name)
    assert name in ergo_capture.__all__


@pytest.mark.parametrize("name", [name for name in ergo_capture.__all__ if name != "__version__"])
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    """Each of its public methods has one too."""
    thing = getattr(ergo_capture, name)
    assert inspect.getdoc(thing)
    assert thing.__doc__ != getattr(thing.__mro__[1], "__doc__", None) if inspect.isclass(thing) else True
    for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not attribute.startswith("_") and inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{attribute}"


def test_the_agreed_shapes_can_be_called() -> None:
    """Arguments are positional where that was agreed, and keywords have their names."""
    event = ExternalEvent.with_payload("e", ExternalEventKind.Command, EventTime(1, 2), b'{"a":1}')
    assert ExternalEvent.mechanical_at("e", ExternalEventKind.Pump, EventTime(0, 0)).payload == b""
    limits = Constraints(max_in_flight=None, max_per_window=None, rate_window=None, deadline=None, max_retries=0)
    runtime = FaultRuntime.from_json(b'{"default": "Completed", "schedule": {"e": ["TimedOut"]}}')
    assert FaultRuntime(default=RunTermination.Completed, schedule={}).default is RunTermination.Completed
    session = CapturingSession("g", limits, MemoryDecisionLog(), runtime, "rpv1:none", adapter_provenance="none")
    session.on_event(event)
    bundle = session.into_bundle()
    assert bundle.decisions[0].termination is RunTermination.TimedOut
    assert encode_bundle(decode_bundle(encode_bundle(bundle))) == encode_bundle(bundle)
    effect = msgspec.json.decode(b'{"kind":"k","writes":[],"surplus":1}', type=ActionEffect)
    assert effect == ActionEffect("k", ())


def test_a_name_from_outside_is_checked() -> None:
    """An id that no UTF-8 text can hold is refused at once, and so is a time out of range."""
    with pytest.raises(ValueError, match="surrogates"):
        ExternalEvent.mechanical("\ud800", ExternalEventKind.Pump)
    with pytest.raises(ValueError, match="u64"):
        EventTime(1 << 64, 0)
    with pytest.raises(ValueError, match="overflow"):
        EventTime((1 << 64) - 1, 1_000_000_000)
    with pytest.raises(ValueError, match="max_retries"):
        Constraints(max_retries=-1)


def test_importing_the_library_does_not_import_the_daemon() -> None:
    """Nothing asynchronous is imported either."""
    code = (
        "import sys, ergo_capture;"
        "print([m for m in sys.modules if m.split('.')[0] in ('anyio', 'asyncio', 'structlog', 'click')"
        " or m.startswith('ergo_capture.server')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=command_environment() | {"PYTHONPATH": str(ergo_capture.__path__[0]) + "/.."},
    )
    assert done.stdout.strip() == "[]"
