"""Errors of a bundle that cannot be read have serde's words and the path of the value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.kernel.texts import TIME, bent

from ergo_capture import decode_bundle
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.kernel.serde.bundle import read_decision, read_event
from ergo_capture.kernel.serde.complaints import at
from ergo_capture.kernel.serde.parsing import parse

VALUE = '{"Number":1.0}'
TERMINATION = '{"Failed":"SemanticError"}'
IN_VALUE = "$.decisions[0].effects[0].effect.writes[0].value"
VALUES = "`Number`, `Series`, `Bool`, `String`"
ERRORS = (
    "`NetworkTimeout`, `AdapterUnavailable`, `ValidationFailed`, `RuntimeError`, `SemanticError`, `DeadlineExceeded`, "
    "`Cancelled`"
)
FIELDS = (
    "`capture_version`, `graph_id`, `config`, `events`, `decisions`, `adapter_provenance`, `runtime_provenance`, "
    "`egress_provenance`"
)
RETRIES = '"max_retries":0'
PAYLOAD = '"payload":[]'
KIND = '"kind":"Command"'


@pytest.mark.parametrize(
    ("old", "new", "message", "path"),
    [
        ('"g"', "1", "invalid type: `1`, expected a string", "$.graph_id"),
        ('"g"', "{}", "invalid type: an object, expected a string", "$.graph_id"),
        ('"g"', "[]", "invalid type: an array, expected a string", "$.graph_id"),
        ('"g"', "null", "invalid type: `null`, expected a string", "$.graph_id"),
        ('"g"', "true", "invalid type: `true`, expected a string", "$.graph_id"),
        (RETRIES, '"max_retries":-1', "invalid value: integer `-1`, expected u64", "$.config.max_retries"),
        (
            RETRIES,
            '"max_retries":18446744073709551616',
            "invalid value: integer `18446744073709551616`, expected u64",
            "$.config.max_retries",
        ),
        (RETRIES, '"max_retries":1.0', "invalid type: `1.0`, expected u64", "$.config.max_retries"),
        (RETRIES, '"max_retries":false', "invalid type: `false`, expected u64", "$.config.max_retries"),
        (RETRIES, r'"max_retries":"\ud800"', "lone surrogate in a string", "$.config.max_retries"),
        (VALUE, '{"Number":1.0,"Bool":true}', "invalid type: an object, expected an enum", IN_VALUE),
        (RETRIES, '"x":0', "missing field `max_retries`", "$.config"),
        (PAYLOAD, '"payload":[255,256]', "invalid value: integer `256`, expected u8", "$.events[0].payload[1]"),
        (PAYLOAD, '"payload":[0,true]', "invalid type: `true`, expected u8", "$.events[0].payload[1]"),
        (PAYLOAD, '"payload":{}', "invalid type: an object, expected a sequence", "$.events[0].payload"),
        (PAYLOAD, '"payload":""', "invalid type: ``, expected a sequence", "$.events[0].payload"),
        (
            KIND,
            '"kind":"Nope"',
            "unknown variant `Nope`, expected one of `Pump`, `DataAvailable`, `Command`",
            "$.events[0].kind",
        ),
        (KIND, r'"kind":"\ud800"', "lone surrogate in a string", "$.events[0].kind"),
        (KIND, r'"kind":{"\ud800":null}', "lone surrogate in a string", "$.events[0].kind"),
        (KIND, '"kind":{"Command":1}', "invalid type: `1`, expected unit", "$.events[0].kind"),
        (
            KIND,
            '"kind":{"Command":null,"Pump":null}',
            "invalid type: an object, expected an enum",
            "$.events[0].kind",
        ),
        (VALUE, '{"Number":"1"}', "invalid type: `1`, expected f64", f"{IN_VALUE}.Number"),
        (VALUE, '{"Number":1e999}', "number out of range", f"{IN_VALUE}.Number"),
        (VALUE, '{"Nope":1}', f"unknown variant `Nope`, expected one of {VALUES}", IN_VALUE),
        ('"writes":[{', r'"writes":[{"\ud800":0,', "lone surrogate in a string", "$.decisions[0].effects[0].effect.writes[0]"),
        (VALUE, '"Number"', f"unknown variant `Number`, expected one of {VALUES}", IN_VALUE),
        (VALUE, '{"Series":[1,"x"]}', "invalid type: `x`, expected f64", f"{IN_VALUE}.Series[1]"),
        (VALUE, '{"Series":{}}', "invalid type: an object, expected a sequence", f"{IN_VALUE}.Series"),
        (VALUE, '{"Bool":1}', "invalid type: `1`, expected a boolean", f"{IN_VALUE}.Bool"),
        (VALUE, r'{"String":"\ud800"}', "lone surrogate in a string", f"{IN_VALUE}.String"),
        ('"SemanticError"', '"Nope"', f"unknown variant `Nope`, expected one of {ERRORS}", "$.decisions[0].termination.Failed"),
        (
            TERMINATION,
            '"Nope"',
            "unknown variant `Nope`, expected one of `Completed`, `TimedOut`, `Aborted`, `Failed`",
            "$.decisions[0].termination",
        ),
        (TERMINATION, '{"Completed":1}', "invalid type: `1`, expected unit", "$.decisions[0].termination"),
        (TERMINATION, "1", "invalid type: `1`, expected an enum", "$.decisions[0].termination"),
        ('"effects":[{', '"effects":[1,{', "invalid type: `1`, expected a struct", "$.decisions[0].effects[0]"),
        ('"events":[{', '"events":[[1,2,3,4,5,6],{', "trailing characters after 5 elements", "$.events[0]"),
        ('"events":[{', '"events":[["a"],{', "missing field `event_time`", "$.events[0]"),
        ('"graph_id":"g"', '"graph_id":"g","graph_id":"g"', "duplicate field `graph_id`", "$"),
        ('"graph_id":"g"', '"graph_id":"g","x":1', f"unknown field `x`, expected one of {FIELDS}", "$"),
        (TIME, '{"secs":1}', "missing field `nanos`", "$.config.rate_window"),
        (
            TIME,
            '{"secs":18446744073709551615,"nanos":1000000000}',
            "overflow deserializing Duration",
            "$.config.rate_window",
        ),
        (
            TIME,
            '{"secs":1,"nanos":4294967296}',
            "invalid value: integer `4294967296`, expected u32",
            "$.config.rate_window.nanos",
        ),
        (TIME, '{"secs":1,"nanos":0,"x":1}', "unknown field `x`, expected one of `secs`, `nanos`", "$.config.rate_window"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_value_and_its_path(old: str, new: str, message: str, path: str) -> None:
    """The message has the value in JSON's spelling, and what was expected."""
    with pytest.raises(BundleFormatError) as raised:
        decode_bundle(bent(old, new).encode())
    assert raised.value.message == f"read capture bundle: {message} - at `{path}`"


def test_a_message_has_one_path() -> None:
    """It is the innermost one."""
    assert at(at("m", "$.a[1]"), "$") == "m - at `$.a[1]`"


@pytest.mark.parametrize("read", [read_event, read_decision])
def test_a_record_that_stands_alone_is_the_root(read: Any) -> None:
    """Its path is ``$``."""
    with pytest.raises(ValueError, match=re.escape("missing field `event_id` - at `$`")):
        read(parse("{}"))
