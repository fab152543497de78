"""The column of semantic kinds in a manifest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.bundle.semantic_kinds import KindColumn, SemanticKinds


def body_of(kinds: list[str | None]) -> bytes:
    """Return an EVENTS body with these kinds."""
    events = [{"event_id": str(n)} | ({} if kind is None else {"semantic_kind": kind}) for n, kind in enumerate(kinds)]
    return "".join(json.dumps({"type": "event", "event": event}) + "\n" for event in events).encode()


def column_of(*bodies: list[str | None]) -> SemanticKinds | None:
    """Return the column of these bodies."""
    column = KindColumn()
    for kinds in bodies:
        column.add(body_of(kinds), len(kinds), 0, len(kinds))
    return column.finish()


@given(st.lists(st.lists(st.none() | st.text(max_size=3), max_size=8), max_size=4))
def test_a_column_gives_the_kinds_back(bodies: list[list[str | None]]) -> None:
    """The kinds of all bodies come back in order; without any kind there is no column."""
    kinds = [kind for body in bodies for kind in body]
    found = column_of(*bodies)
    if found is None:
        assert not any(kind is not None for kind in kinds)
    else:
        given = found.of(len(kinds))
        assert given is not None
        assert list(given) == kinds


def test_a_part_of_a_body_is_taken() -> None:
    """The rest of the body belongs to another bundle."""
    column = KindColumn()
    column.add(body_of(["a", "b", "c", "d"]), 4, 1, 3)
    found = column.finish()
    assert found is not None
    assert list(found.of(2) or ()) == ["b", "c"]


@pytest.mark.parametrize("count", [0, 1, 3, 1 << 40])
def test_a_column_of_another_bundle_is_none(count: int) -> None:
    """It has another number of events."""
    found = column_of(["a", "b"])
    assert found is not None
    assert found.of(count) is None


@pytest.mark.parametrize("column", [None, "", "!", "AAAA", "KLUv/QQA"])
def test_a_damaged_column_is_none(column: str | None) -> None:
    """It is evidence beside the bundle, and no reason to refuse the bundle."""
    assert SemanticKinds(["a"], column).of(2) is None


def test_more_than_a_manifest_holds_is_left_out() -> None:
    """The manifest then only says that there were kinds."""
    found = column_of([f"{n}{'x' * 1000}" for n in range(300)])
    assert found == SemanticKinds([], None)
