"""``ergo-capture replay --adapter`` of tampered captures gives the verdict of ``ergo replay``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from tests.adapter.cases import rows

from ergo_capture import EventTime, decode_bundle
from ergo_capture.cli import app
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.outcomes import ErrKind, RunTermination
from ergo_capture.kernel.ports import RunResult

ROWS = {row["name"]: row for row in rows("replay")}
OUTCOMES = {0: "same", 1: "failed", 4: "diverged"}
#: Exit code and words of ours for each code of the reference.
OURS: Final = {
    None: (0, ""),
    "replay.unexpected_adapter": (1, "adapter must not be provided"),
    "replay.adapter_required": (1, "adapter is required"),
    "replay.adapter_provenance_mismatch": (1, "adapter provenance mismatch"),
    "replay.runtime_provenance_mismatch": (1, "runtime provenance mismatch"),
    "replay.unsupported_capture_version": (1, "unsupported capture version"),
    "replay.hash_mismatch": (1, "payload hash mismatch"),
    "replay.event_rehydrate_failed": (1, "invalid payload"),
    "replay.external_effect_kind_unrepresentable": (1, "the adapter takes no effect"),
    "replay.duplicate_event_id": (1, "duplicate event_id"),
    "replay.decision_mismatch": (4, "missing"),
    "replay.effect_mismatch": (4, "effects"),
}
#: The rows with another exit code or other words than the reference's, each with the reason.
OTHERWISE: Final = {
    # A bad manifest is an error of its own, before any bundle is read.
    "adapter-invalid": (78, "ADP-1"),
    # The graph is the engine's: whether it composes is not seen, and the adapter's provenance is another one.
    "adapter-does-not-compose": (1, "adapter provenance mismatch"),
    # As above: an engine is asked for the bundle's graph by its id, and says itself which graphs it has.
    "graph-other-id": (0, ""),
    "capture-not-json": (1, "it is not a JSON object"),
    # The host's event is checked, too.
    "event-payload-against-schema": (1, "'zzz' was unexpected"),
    # The provenance is looked at before effects are.
    "egress-without-adapter": (1, "adapter is required"),
}


class Script:
    """The effects of the engine of the graph with egress, by event."""

    effects: dict[str, tuple[ActionEffect, ...]] = {}  # noqa: RUF012 - set by each test


def engine(graph_id: str, event_id: str, kind: str, at: EventTime, payload: bytes, deadline: EventTime | None) -> Any:
    """Run the graphs of the data: one divides and counts, the others have the recorded effects."""
    del kind, at, deadline
    if graph_id != "div_graph":
        return RunResult(RunTermination.Completed, Script.effects.get(event_id, ()))
    given = json.loads(payload)
    if not (divisor := given.get("b", 0)):
        return RunResult(RunTermination.Failed(ErrKind.SemanticError))
    n, q = float(given.get("n", 0) + given["a"]), given["a"] / divisor
    writes = [EffectWrite("n", Value(Number=n)), EffectWrite("q", Value(Number=q))]
    return RunResult(RunTermination.Completed, tuple(ActionEffect("set_context", (write,)) for write in writes))


@pytest.mark.parametrize("name", ROWS)
def test_a_replay_says_what_the_reference_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This holds for all 27 rows, with the exceptions above."""
    row = ROWS[name]
    capture = tmp_path / "c.capture.json"
    capture.write_text(row["capture"])
    untouched = decode_bundle(ROWS["egress-as-captured"]["capture"].encode())
    Script.effects = {record.event_id: tuple(e.effect for e in record.effects) for record in untouched.decisions}
    arguments = ["replay", "--json", "--strict", "--engine", f"python:{__name__}:engine", str(capture)]
    if row["adapter_yaml"] is not None:
        (tmp_path / "adapter.yaml").write_text(row["adapter_yaml"])
        arguments += ["--adapter", str(tmp_path / "adapter.yaml")]
    # The provenance of an engine is that of its graph.
    if stated := re.search(r"expected: '(rpv1:\S+)'", row["stderr"]):
        arguments += ["--runtime-provenance", stated[1]]
    told = re.search(r"^code: (\S+)", row["stderr"], re.MULTILINE)
    code, words = OTHERWISE.get(name) or OURS[told and told[1]]
    assert app.run(arguments) == code
    said = capsys.readouterr()
    if code == 78:
        assert words in said.err
        return
    result = json.loads(said.out)
    assert result["outcome"] == OUTCOMES[code]
    assert words in (result["divergence"]["field"] if code == 4 else result.get("error", ""))
