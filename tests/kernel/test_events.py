"""Events and their payloads, and the terminations of episodes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.kernel.test_numbers import NUMBERS, taken

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, RunTermination
from ergo_capture.kernel.events import ExternalEventPayloadError, are_payloads, check_payload, json_type_name
from ergo_capture.kernel.outcomes import ErrKind

COMMAND = ExternalEventKind.Command
SURROGATE = "\ud800"


def test_an_event_is_made_with_or_without_a_payload() -> None:
    """Its time is zero unless given, and its semantic kind is kept."""
    at = EventTime(1, 2)
    assert ExternalEvent.mechanical("e", COMMAND) == ExternalEvent("e", COMMAND, EventTime(0, 0), b"", None)
    bare = ExternalEvent.mechanical_at("e", COMMAND, at, semantic_kind="k")
    assert bare == ExternalEvent("e", COMMAND, at, b"", "k")
    full = ExternalEvent.with_payload("e", COMMAND, at, b"{}", semantic_kind="k")
    assert full == ExternalEvent("e", COMMAND, at, b"{}", "k")


@pytest.mark.parametrize(("event_id", "semantic_kind"), [(SURROGATE, None), ("e", SURROGATE)])
def test_an_event_holds_no_lone_surrogate(event_id: str, semantic_kind: str | None) -> None:
    """No UTF-8 text could."""
    with pytest.raises(UnicodeEncodeError):
        ExternalEvent.mechanical_at(event_id, COMMAND, EventTime(0, 0), semantic_kind=semantic_kind)
    with pytest.raises(UnicodeEncodeError):
        ExternalEvent.with_payload(event_id, COMMAND, EventTime(0, 0), b"", semantic_kind=semantic_kind)


@pytest.mark.parametrize(
    ("payload", "message", "hint"),
    [
        (
            b"{",
            "payload bytes are not valid JSON: Input data was truncated",
            "send one JSON object in UTF-8, or no payload at all",
        ),
        (
            b'{"a":1e999}',
            "payload bytes are not valid JSON: number out of range",
            "send one JSON object in UTF-8, or no payload at all",
        ),
        (b"[]", "payload must be a JSON object, got array", "send an object such as {}, or no payload at all"),
        (b"null", "payload must be a JSON object, got null", "send an object such as {}, or no payload at all"),
        (b"true", "payload must be a JSON object, got boolean", "send an object such as {}, or no payload at all"),
        (b'"x"', "payload must be a JSON object, got string", "send an object such as {}, or no payload at all"),
        (b"1.5", "payload must be a JSON object, got number", "send an object such as {}, or no payload at all"),
    ],
)
def test_a_refused_payload_says_what_to_send(payload: bytes, message: str, hint: str) -> None:
    """The reference's words, and a hint."""
    with pytest.raises(ExternalEventPayloadError) as raised:
        check_payload(payload)
    assert (raised.value.message, raised.value.hint) == (message, hint)


@pytest.mark.parametrize(
    "payloads",
    [
        [b'{"a":1}'],
        [b'{"a":1}', b'{"b":{}}', b""],
        [b'{"a":[1]}'] * 200,
        [b'{"a":' + b"[" * 126 + b"]" * 126 + b"}"],
        [b'{"a":[1]}', b'{"a":1e300}'],
        [b'{"a":"[{[{"}'] * 40,
    ],
    ids=["one", "flat", "arrays", "deep", "large", "strings"],
)
def test_payloads_are_accepted_together(payloads: list[bytes]) -> None:
    """They are not checked one by one."""
    assert are_payloads(payloads)


@pytest.mark.parametrize(
    "payloads",
    [
        [b'{"a":[{}', b"{}]}", b"{},{}"],
        [b'{"a":{}', b'"b":1}', b"{},{}"],
        [b'{"a":"x', b'y"}', b"{},{}"],
        [b"{},{}"],
        [b"[]"],
        [b"1"],
        [b'{"a":' + b"[" * 127 + b"]" * 127 + b"}"],
        [b'{"a":' + b'[{"b":' * 64 + b"1" + b"}]" * 64 + b"}"],
    ],
    ids=["array", "object", "string", "two", "no object", "number", "deep", "mixed"],
)
def test_payloads_that_are_objects_only_together_are_not_accepted(payloads: list[bytes]) -> None:
    """An equal number of objects and payloads proves nothing."""
    assert not are_payloads(payloads)


@pytest.mark.parametrize("number", [number for number, read_there in NUMBERS if not read_there])
@pytest.mark.parametrize("other", ["1", "[1]"])
def test_payloads_with_a_number_out_of_range_are_not_accepted(number: str, other: str) -> None:
    """The reference refuses them; the decoder reads some of them."""
    payload = f'{{"a":{other},"b":{number}}}'
    assert not taken(payload)
    assert not are_payloads([payload.encode()])


TERMINATIONS: list[tuple[Any, RunTermination]] = [
    ("Completed", RunTermination.Completed),
    ({"TimedOut": None}, RunTermination.TimedOut),
    ({"Failed": "RuntimeError"}, RunTermination.Failed(ErrKind.RuntimeError)),
    ({"Failed": {"RuntimeError": None}}, RunTermination.Failed(ErrKind.RuntimeError)),
]


@pytest.mark.parametrize(("value", "termination"), TERMINATIONS)
def test_a_termination_is_read_in_serdes_forms(value: Any, termination: RunTermination) -> None:
    """A variant without content may be an object holding null."""
    assert RunTermination.from_builtins(value) is termination


KINDS = ", ".join(f"`{kind.value}`" for kind in ErrKind)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"Failed": {"RuntimeError": 1}}, f"unknown variant `{{'RuntimeError': 1}}`, expected one of {KINDS}"),
        ({"Failed": {}}, f"unknown variant `{{}}`, expected one of {KINDS}"),
        ({"Failed": "Nope"}, f"unknown variant `Nope`, expected one of {KINDS}"),
        ("Failed", "unknown variant `Failed`, expected one of `Completed`, `TimedOut`, `Aborted`, `Failed`"),
        ({"Completed": 1}, "unknown variant `{'Completed': 1}`, expected one of `Completed`, `TimedOut`, `Aborted`, `Failed`"),
    ],
)  # fmt: skip
def test_another_termination_is_refused_with_those_that_there_are(value: Any, message: str) -> None:
    """Reasons of a failure, or variants."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RunTermination.from_builtins(value)


@pytest.mark.parametrize(
    ("termination", "text", "retried"),
    [
        (RunTermination.Completed, "RunTermination.Completed", False),
        (RunTermination.TimedOut, "RunTermination.TimedOut", True),
        (RunTermination.Aborted, "RunTermination.Aborted", False),
        (RunTermination.Failed(ErrKind.NetworkTimeout), "RunTermination.Failed(ErrKind.NetworkTimeout)", True),
        (RunTermination.Failed(ErrKind.SemanticError), "RunTermination.Failed(ErrKind.SemanticError)", False),
    ],
)
def test_only_mechanical_failures_are_tried_again(termination: RunTermination, text: str, retried: bool) -> None:
    """Rule 4; a termination is shown as it is written in code."""
    assert (repr(termination), termination.retryable) == (text, retried)
    assert termination.json.decode() == json.dumps(termination.to_builtins(), separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "name"),
    [({}, "object"), ([], "array"), ("", "string"), (True, "boolean"), (1, "number"), (1.0, "number"), (None, "null")],
)
def test_a_value_has_the_name_of_its_json_type(value: Any, name: str) -> None:
    """True is no number."""
    assert json_type_name(value) == name
