"""A refusal names its code, its place, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.adapter.test_accept import ADAPTER, MANIFEST
from tests.adapter.test_canonical import canonical_payload
from tests.adapter.test_egress import CONFIG

from ergo_capture import ActionEffect, Constraints, ExternalEvent, FaultRuntime
from ergo_capture.adapter import Adapter, AdapterError, ContextStore, HostedEvent, load_adapter
from ergo_capture.adapter.binding import Binding, refusal_text
from ergo_capture.adapter.composition import Node, check_composition
from ergo_capture.adapter.egress import check_intents, check_owners, parse_egress_config
from ergo_capture.adapter.errors import extra_missing
from ergo_capture.adapter.events import read_hosted_event
from ergo_capture.adapter.host import Host
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.effects import EffectWrite, IntentRecord, Value
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime

COMMAND = ExternalEventKind.Command
AT = EventTime(1, 2)
NODE_FIX = "Add context key 'q' to the adapter's context_keys"
EVENT_FIX = (
    'send {"event_id": ..., "kind": "DataAvailable", "at": {"secs": S, "nanos": N}, "semantic_kind": ..., '
    '"payload": {...}}'
)
EGRESS_FIX = "give each kind of effect that the adapter accepts and the graph emits one route; set_context needs none"
CONFIG_FIX = 'write default_ack_timeout, [channels.NAME] type = "process", command = [...], and [routes.KIND] channel'
KEY_FIX = "declare the key as writable, with this type, in the adapter's context_keys, or change the graph"
ENGINE_FIX = "let the engine report what the graph's actions declare"
CAPTURED_FIX = "compare the capture with a backup or the journal, or the adapter with the one that it was made with"
PAYLOAD_FIX = "send a JSON object of Unicode text and numbers within f64, or no payload"
SCHEMA_FIX = "send a payload that the adapter's schema of 'plain' takes, or change the schema"
KIND_FIX = "name one of the adapter's event kinds: 'full', 'plain'"
MISMATCH = "semantic event binding failed: payload does not match schema for semantic event kind"
INTENT = IntentRecord("send", "i", ())


class Engine:
    """An engine whose episodes have one effect."""

    def __init__(self, effect: ActionEffect) -> None:
        self._effect = effect

    def run(self, *_: object) -> RunResult:
        """Complete with the effect."""
        return RunResult(RunTermination.Completed, (self._effect,))


def host(effect: ActionEffect, manifest: str | None = MANIFEST) -> Host:
    """Return a run whose engine has this effect."""
    adapter = None if manifest is None else load_adapter(manifest)
    return Host("g", Constraints(), Engine(effect), "rpv1:none", adapter=adapter)


def hosted(payload: Any, kind: str | None = "plain", event_id: str = "e") -> HostedEvent:
    """Return an event with a payload."""
    return HostedEvent(event_id, COMMAND, AT, kind, payload)


def step_twice() -> None:
    """Step the same event twice."""
    run = host(ActionEffect("set_context", ()))
    run.step(hosted({}))
    run.step(hosted({}))


def compose(adapter: Adapter = ADAPTER, **needs: Any) -> None:
    """Check a node against the adapter."""
    check_composition(adapter, [msgspec.convert({"id": "n0"} | needs, Node)])


def write(key: str, value: Value) -> None:
    """Apply an effect that writes one key."""
    ContextStore().apply(ActionEffect("set_context", (EffectWrite(key, value),)), ADAPTER)


def captured(payload: dict[str, Any], kind: str | None, values: dict[str, Any] | None = None) -> None:
    """Check a captured payload."""
    ADAPTER.check_captured(payload, ContextStore(values), kind)


ONE = Value(Number=1.0)
#: Adapters without writable keys, and without event kinds.
READ_ONLY = load_adapter(
    MANIFEST.replace("writable: true", "writable: false").replace("name: set_context", "name: send")
)
WITHOUT_EVENTS = load_adapter(re.sub("event_kinds:.*(?=accepts:)", "event_kinds: []\n", MANIFEST, flags=re.DOTALL))
#: Refusals of several rows.
NO_UNICODE = (
    "schema_violation",
    "event build failed: 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
    "$",
    PAYLOAD_FIX,
    None,
    ExitCode.FAILED,
)
NO_KEY_OF_THE_STORE = (
    "store_key_missing",
    "the payload has no 'v', which the context store holds and the schema of 'full' names",
    "$.v",
    "compare the capture with a backup or the journal: the host adds such a key",
    None,
    ExitCode.FAILED,
)
REFUSALS: dict[str, tuple[Callable[[], object], str, str, str, str, str | None, int]] = {
    "duplicate event": (
        step_twice,
        "invalid_event",
        "duplicate event_id 'e' in canonical host runner",
        "event_id",
        "give each event of a run an id of its own",
        None,
        ExitCode.FAILED,
    ),
    "no event": (
        lambda: read_hosted_event("{"),
        "invalid_event",
        "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "the text of the event",
        EVENT_FIX,
        None,
        ExitCode.FAILED,
    ),
    "array as payload without adapter": (
        lambda: host(ActionEffect("k", ()), None).step(hosted([])),
        "schema_violation",
        "payload must be a JSON object",
        "$",
        "send an object, or no payload",
        None,
        ExitCode.FAILED,
    ),
    "payload without adapter": (
        lambda: Binding(None).admit(hosted([])),
        "schema_violation",
        "event build failed: payload must be a JSON object, got array",
        "$",
        PAYLOAD_FIX,
        None,
        ExitCode.FAILED,
    ),
    "surrogate in a host without adapter": (
        lambda: host(ActionEffect("k", ()), None).step(hosted({}, event_id="\ud800")),
        *NO_UNICODE,
    ),
    "surrogate without payload in a host without adapter": (
        lambda: host(ActionEffect("k", ()), None).step(hosted(None, event_id="\ud800")),
        *NO_UNICODE,
    ),
    "effects without adapter": (
        lambda: host(ActionEffect("k", ()), None).step(hosted(None)),
        "invalid_effect",
        "effects emitted in adapter-independent mode",
        "effect ''",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "intents of the store's effect": (
        lambda: host(ActionEffect("set_context", (), (INTENT,))).step(hosted({})),
        "invalid_effect",
        "host lifecycle violation: handler-owned effect 'set_context' must not carry intents",
        "effect 'set_context'",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "effect without a route": (
        lambda: host(ActionEffect("send", ())).step(hosted({})),
        "invalid_effect",
        "effect application failed: no registered effect handler for kind 'send'",
        "effect 'send'",
        "route 'send' to an egress channel",
        None,
        ExitCode.FAILED,
    ),
    "intents of the store's effect, bound": (
        lambda: Binding(MANIFEST).check_effects([ActionEffect("set_context", (), (INTENT,))]),
        "invalid_effect",
        "handler-owned effect 'set_context' must not carry intents",
        "effect 'set_context'",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "writes of a routed effect": (
        lambda: check_intents(ActionEffect("send", (EffectWrite("n", ONE),), (INTENT,))),
        "invalid_effect",
        "host lifecycle violation: egress-owned effect 'send' must not carry writes",
        "effect 'send'",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "no intents": (
        lambda: check_intents(ActionEffect("send", ())),
        "invalid_effect",
        "host lifecycle violation: egress-owned effect 'send' must carry at least one intent",
        "effect 'send'",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "intents of another kind": (
        lambda: check_intents(ActionEffect("send", (), (INTENT, IntentRecord("other", "j", ())))),
        "invalid_effect",
        "host lifecycle violation: egress-owned effect 'send' contains intent with mismatched kind",
        "effect 'send'",
        ENGINE_FIX,
        None,
        ExitCode.FAILED,
    ),
    "two owners": (
        lambda: check_owners(["set_context"], ["set_context"], ["set_context"]),
        "egress_config",
        "egress configuration validation failed: ambiguous coverage for kind 'set_context': claimed by both handler and egress",
        "effect kind 'set_context'",
        EGRESS_FIX,
        None,
        ExitCode.CONFIG,
    ),
    "no owner": (
        lambda: check_owners(["a", "send"], ["a", "send"], ["a"]),
        "egress_config",
        "egress configuration validation failed: missing effect handler for kind 'send'",
        "effect kind 'send'",
        EGRESS_FIX,
        None,
        ExitCode.CONFIG,
    ),
    "a route that is not accepted": (
        lambda: parse_egress_config(CONFIG).check(["other"], []),
        "egress_config",
        "egress configuration validation failed: egress route kind 'send' is not accepted by adapter (accepts.effects)",
        "effect kind 'send'",
        EGRESS_FIX,
        None,
        ExitCode.CONFIG,
    ),
    "egress configuration": (
        lambda: parse_egress_config(CONFIG.replace('["./a"]', "[]")),
        "egress_config",
        "egress channel 'a' process command must not be empty",
        "egress configuration",
        CONFIG_FIX,
        None,
        ExitCode.CONFIG,
    ),
    "extra missing": (
        lambda: (_ for _ in ()).throw(extra_missing(ImportError(name="yaml"))).send(None),
        "extra_missing",
        "reading an adapter needs the package 'yaml', which is not installed",
        "the Python environment",
        "install the extra that adapters need: pip install 'ergo-capture[adapter]'",
        None,
        ExitCode.CONFIG,
    ),
    "key that is not declared": (
        lambda: write("q", ONE),
        "invalid_effect",
        "effect application failed: effect 'set_context' writes undeclared context key 'q'",
        "effect on 'q'",
        KEY_FIX,
        None,
        ExitCode.FAILED,
    ),
    "key that is not writable": (
        lambda: write("fixed", ONE),
        "invalid_effect",
        "effect application failed: effect 'set_context' writes non-writable context key 'fixed'",
        "effect on 'fixed'",
        KEY_FIX,
        None,
        ExitCode.FAILED,
    ),
    "key of another type": (
        lambda: write("n", Value(Bool=True)),
        "invalid_effect",
        "effect application failed: effect 'set_context' key 'n' has wrong type: expected Number, got Bool",
        "effect on 'n'",
        KEY_FIX,
        None,
        ExitCode.FAILED,
    ),
    "another effect": (
        lambda: ContextStore().apply(ActionEffect("send", ()), ADAPTER),
        "invalid_effect",
        "effect application failed: no registered effect handler for kind 'send'",
        "effect on 'send'",
        KEY_FIX,
        None,
        ExitCode.FAILED,
    ),
    "full store": (
        lambda: ContextStore(limit=1000).apply(
            ActionEffect("set_context", (EffectWrite("v", Value(Series=(1.0,) * 400)),)), ADAPTER
        ),
        "context_full",
        "the context store would take 1,604 bytes with key 'v'; its limit is 1,000",
        "context key 'v'",
        "raise limits.context_bytes, or let the graph write less",
        None,
        ExitCode.FAILED,
    ),
    "no semantic kind": (
        lambda: ADAPTER.admit(hosted({}, None)),
        "schema_violation",
        "semantic_kind is required in adapter-bound mode",
        "semantic_kind",
        KIND_FIX,
        "semantic_kind",
        ExitCode.FAILED,
    ),
    "unknown kind": (
        lambda: ADAPTER.admit(hosted({}, "other")),
        "schema_violation",
        "unknown semantic event kind 'other'",
        "semantic_kind",
        KIND_FIX,
        "semantic_kind",
        ExitCode.FAILED,
    ),
    "no payload": (
        lambda: ADAPTER.admit(hosted(None)),
        "schema_violation",
        "payload is required in adapter-bound mode",
        "$",
        SCHEMA_FIX,
        "required",
        ExitCode.FAILED,
    ),
    "array as payload": (
        lambda: ADAPTER.admit(hosted([])),
        "schema_violation",
        "payload must be a JSON object",
        "$",
        SCHEMA_FIX,
        "type",
        ExitCode.FAILED,
    ),
    "schema": (
        lambda: ADAPTER.admit(hosted({"fixed": -1})),
        "schema_violation",
        f"{MISMATCH} 'plain': -1 is less than the minimum of 0",
        "$.fixed",
        SCHEMA_FIX,
        "minimum",
        ExitCode.FAILED,
    ),
    "value of the store": (
        lambda: ADAPTER.bind(hosted({}, "full"), ContextStore({"n": 11.0})),
        "schema_violation",
        f"{MISMATCH} 'full': 11.0 is greater than the maximum of 10",
        "$.n",
        "send 'n' with the event: the value in the context store, which graph effects wrote, is refused",
        "maximum",
        ExitCode.FAILED,
    ),
    "surrogate": (
        lambda: ADAPTER.bind(hosted({}, event_id="\ud800"), ContextStore()),
        "schema_violation",
        f"{MISMATCH} 'plain': 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
        "$",
        SCHEMA_FIX,
        "payload",
        ExitCode.FAILED,
    ),
    "captured payload of an unknown kind": (
        lambda: captured({}, "other"),
        "schema_violation",
        "unknown semantic event kind 'other'",
        "semantic_kind",
        KIND_FIX,
        "semantic_kind",
        ExitCode.FAILED,
    ),
    "captured payload": (
        lambda: captured({"n": 11}, "full"),
        "schema_violation",
        f"{MISMATCH} 'full': 11 is greater than the maximum of 10",
        "$.n",
        CAPTURED_FIX,
        "maximum",
        ExitCode.FAILED,
    ),
    "captured payload without a key of the store": (
        lambda: captured({"n": 1}, "full", {"v": [1.0]}),
        *NO_KEY_OF_THE_STORE,
    ),
    "captured payload of any kind without a key of the store": (
        lambda: captured({"n": 1}, None, {"v": [1.0]}),
        *NO_KEY_OF_THE_STORE,
    ),
    "captured payload of no kind": (
        lambda: captured({"n": 11}, None),
        "schema_violation",
        ("no event kind of the adapter takes the payload: payload does not match schema for semantic event kind 'full': "
        "11 is greater than the maximum of 10; payload does not match schema for semantic event kind 'plain': "
        "Additional properties are not allowed ('n' was unexpected)"),
        "$",
        CAPTURED_FIX,
        None,
        ExitCode.FAILED,
    ),
    "captured payload beside an adapter without event kinds": (
        lambda: WITHOUT_EVENTS.check_captured({}, ContextStore()),
        "schema_violation",
        "no event kind of the adapter takes the payload: it has none",
        "$",
        CAPTURED_FIX,
        None,
        ExitCode.FAILED,
    ),
    "key for a source": (
        lambda: compose(reads=[{"name": "q", "type": "Number", "required": True}]),
        "manifest_rule",
        "source composition failed for node 'n0': Required context key 'q' not provided by adapter (COMP-1)",
        "node 'n0'",
        NODE_FIX,
        "COMP-1",
        ExitCode.CONFIG,
    ),
    "type of a source": (
        lambda: compose(reads=[{"name": "n", "type": "String"}]),
        "manifest_rule",
        "source composition failed for node 'n0': Context key 'n' type mismatch: expected 'String', got 'Number' (COMP-2)",
        "node 'n0'",
        "Change type of 'n' in adapter's context_keys to 'String'",
        "COMP-2",
        ExitCode.CONFIG,
    ),
    "key for an action": (
        lambda: compose(writes=[{"name": "q", "type": "Number"}]),
        "manifest_rule",
        "action composition failed for node 'n0': Action write target 'q' not provided by adapter (COMP-11)",
        "node 'n0'",
        NODE_FIX,
        "COMP-11",
        ExitCode.CONFIG,
    ),
    "writable key for an action": (
        lambda: compose(writes=[{"name": "fixed", "type": "Number"}]),
        "manifest_rule",
        "action composition failed for node 'n0': Action write target 'fixed' is not writable in adapter (COMP-12)",
        "node 'n0'",
        "Mark context key 'fixed' as writable in the adapter manifest",
        "COMP-12",
        ExitCode.CONFIG,
    ),
    "type for an action": (
        lambda: compose(writes=[{"name": "n", "type": "Bool"}]),
        "manifest_rule",
        ("action composition failed for node 'n0': Action write target 'n' type mismatch: expected 'Bool', got 'Number' "
        "(COMP-13)"),
        "node 'n0'",
        "Change type of 'n' in adapter's context_keys to 'Bool'",
        "COMP-13",
        ExitCode.CONFIG,
    ),
    "set_context for an action": (
        lambda: compose(intents=[{"kind": "send", "fields": [], "mirrored": True}], adapter=READ_ONLY),
        "manifest_rule",
        ("action composition failed for node 'n0': Adapter does not accept set_context effect required for writes "
        "(COMP-14)"),
        "node 'n0'",
        "Add 'set_context' to adapter accepts.effects",
        "COMP-14",
        ExitCode.CONFIG,
    ),
    "effect for an intent": (
        lambda: compose(intents=[{"kind": "send", "fields": []}]),
        "manifest_rule",
        ("action composition failed for node 'n0': Adapter does not accept intent effect kind 'send' required by action "
        "manifest (COMP-17)"),
        "node 'n0'",
        "Add 'send' to adapter accepts.effects",
        "COMP-17",
        ExitCode.CONFIG,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("does", "code", "message", "where", "fix", "rule", "exit_code"), REFUSALS.values(), ids=REFUSALS
)
def test_a_refusal_says_what_where_and_what_to_do(
    does: Callable[[], object],
    code: str,
    message: str,
    where: str,
    fix: str,
    rule: str | None,
    exit_code: int,
) -> None:
    """The words are the reference's, where it has some; the fields are always the same."""
    with pytest.raises(AdapterError) as caught:
        does()
    error = caught.value
    assert (error.code, error.message, error.where) == (code, message, where)
    assert (error.fix, error.hint, error.rule, error.exit_code) == (fix, fix, rule, exit_code)
    assert error.op == "apply adapter"


@pytest.mark.parametrize(
    ("payload", "kind", "values"),
    [
        ({"n": 1}, "full", {}),
        ({"n": 1, "v": [1]}, "full", {"v": [2.0], "fixed": 3.0}),
        ({"n": 1}, None, {}),
        ({"fixed": 1}, None, {"v": [2.0]}),
        ({}, "plain", {"v": [2.0]}),
    ],
)
def test_a_captured_payload_is_one_that_may_have_been_bound(
    payload: dict[str, Any], kind: str | None, values: dict[str, Any]
) -> None:
    """Its schema is chosen by its kind; without a known kind, any of the schemas may fit."""
    captured(payload, kind, values)


def test_a_bound_event_keeps_its_time_kind_and_meaning() -> None:
    """This holds with and without an adapter, a payload and a kind."""
    for binding, payload, text in ((Binding(MANIFEST), {}, b"{}"), (Binding(None), None, b"")):
        bound = binding.bind(hosted(payload), binding.store())
        assert bound.event == ExternalEvent("e", COMMAND, AT, text, "plain")
        assert bound.taken == ()
    assert Binding(None).bind(hosted(None, None), ContextStore()).event == ExternalEvent("e", COMMAND, AT, b"", None)


def test_routed_effects_do_not_end_the_check_of_others() -> None:
    """The effects behind a routed one are checked too."""
    effects = [ActionEffect("send", (), (INTENT,)), ActionEffect("other", ())]
    with pytest.raises(AdapterError, match="no registered effect handler for kind 'other'"):
        Binding(MANIFEST).check_effects(effects, ["send"])


def test_numbers_are_read_as_a_binding_was_told() -> None:
    """This applies to the numbers in the manifest's schemas and in payloads."""
    assert Binding(None).numbers == "reference"
    adapter = Binding(MANIFEST, "exact").adapter
    assert adapter is not None
    assert adapter.numbers == "exact"
    with pytest.raises(AdapterError, match=r"^decode adapter manifest 'adapter\.yaml': "):
        Binding("[]")
    with pytest.raises(AdapterError, match=r"^decode adapter manifest 'other': "):
        Binding("[]", name="other")


@pytest.mark.parametrize(("rule", "by"), [("r", ", by 'r'"), ("", ""), (None, "")])
@pytest.mark.parametrize("length", [400, 470, 484, 485, 493, 494, 600])
def test_the_text_of_a_refusal_has_at_most_500_characters(length: int, rule: str | None, by: str) -> None:
    """The message is cut first; a place that leaves no room for the message is left out, and so is no rule."""
    error = AdapterError("schema_violation", "m" * 600, where="w" * length, fix="f", rule=rule)
    place = f" (at {'w' * length}{by})"
    expected = "m" * 500 if len(place) >= 500 else "m" * (500 - len(place)) + place
    assert refusal_text(error) == expected


def test_minus_zero_is_a_float_in_a_canonical_payload() -> None:
    """The reference does the same. The letter of an exponent may be upper or lower case."""
    assert canonical_payload(b'{"a":-0,"b":1E2,"c":1e2,"d":0}') == b'{"a":-0.0,"b":100.0,"c":100.0,"d":0}'


def test_a_run_without_an_adapter_takes_payloads_as_they_are() -> None:
    """They are only made canonical, and may be absent."""
    run = Host("g", Constraints(), FaultRuntime(), "rpv1:none")
    run.step(hosted({"b": 1, "a": 2.0}, event_id="a"))
    run.step(hosted(None, event_id="b"))
    events = [(each.event_id, each.kind, each.event_time, each.payload) for each in run.bundle().events]
    assert events == [("a", COMMAND, AT, b'{"a":2.0,"b":1}'), ("b", COMMAND, AT, b"")]
