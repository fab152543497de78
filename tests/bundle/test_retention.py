"""Which bundles have had their time: the policy, and the catalogue that it looks at."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bundles import DAY, NOW, store

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle, difference_from_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.retention import Bounds, RetentionRules, select_expired
from ergo_capture.errors import ErgoCaptureError


def stored(name: str, days: float, size: int = 100, graph: str = "g", problem: str | None = None) -> StoredBundle:
    """A bundle that ended so many days ago."""
    return StoredBundle(Path(graph) / name, graph, size, None, NOW - days * DAY, problem)


def gone(bundles: list[StoredBundle], rules: RetentionRules, free: int = 0) -> list[tuple[str, str]]:
    """Names and reasons of what is chosen."""
    return [(choice.bundle.path.name, choice.reason) for choice in select_expired(bundles, rules, NOW, free)]


THREE = [stored("new", 1), stored("old", 3), stored("middle", 2)]


def test_nothing_goes_without_a_bound() -> None:
    """Bundles of any age and number stay where nothing is set."""
    assert not RetentionRules().are_set
    assert gone([*THREE, stored("ancient", 10_000)], RetentionRules()) == []


def test_bundles_older_than_the_age_go_and_one_of_just_that_age_stays() -> None:
    """The age counts from the end of the session's part, and even the newest goes by it."""
    assert gone(THREE, RetentionRules(Bounds(max_age=2 * DAY))) == [("old", "max_age")]
    assert [name for name, _ in gone(THREE, RetentionRules(Bounds(max_age=timedelta(hours=1))))] == [
        "old",
        "middle",
        "new",
    ]


def test_the_oldest_beyond_the_count_go() -> None:
    """So many of the newest stay."""
    assert gone(THREE, RetentionRules(Bounds(max_bundles=2))) == [("old", "max_bundles")]


def test_the_oldest_beyond_the_bytes_go_and_no_older_one_outlives_a_newer() -> None:
    """A small old bundle does not slip into what a large newer one left."""
    bundles = [stored("new", 1, 60), stored("large", 2, 70), stored("small", 3, 10)]
    assert gone(bundles, RetentionRules(Bounds(max_bytes=100))) == [("small", "max_bytes"), ("large", "max_bytes")]


def test_the_newest_stays_however_large_it_is() -> None:
    """Its client was just told where it is."""
    assert gone([stored("huge", 1, 10**9)], RetentionRules(Bounds(max_bytes=1))) == []


def test_each_graph_is_counted_by_itself_and_may_have_bounds_of_its_own() -> None:
    """A busy graph does not push another's bundles out."""
    bundles = [stored(f"{graph}{n}", n, graph=graph) for graph in ("a", "b") for n in range(3)]
    rules = RetentionRules(Bounds(max_bundles=2), {"b": Bounds(max_bundles=1)})
    assert gone(bundles, rules) == [("a2", "max_bundles"), ("b2", "max_bundles"), ("b1", "max_bundles")]


def test_room_is_made_from_the_oldest_of_all_graphs_but_for_the_newest_of_each() -> None:
    """No more goes than is needed, and what goes by other bounds counts."""
    bundles = [stored("a0", 9, graph="a"), *(stored(f"b{n}", n, graph="b") for n in (1, 2, 3))]
    assert gone(bundles, RetentionRules(keep_free_bytes=150), free=50) == [("b3", "keep_free_bytes")]
    assert gone(bundles, RetentionRules(keep_free_bytes=150), free=150) == []
    assert [name for name, _ in gone(bundles, RetentionRules(keep_free_bytes=10_000))] == ["b3", "b2"]
    rules = RetentionRules(Bounds(max_bundles=2), keep_free_bytes=200)
    assert gone(bundles, rules, free=100) == [("b3", "max_bundles")]


def test_what_may_not_go_is_not_chosen_and_takes_no_place() -> None:
    """Ten damaged bundles do not push the sound ones out."""
    bundles = [*THREE, *(stored(f"bad{n}", 0, problem="no manifest") for n in range(10))]
    assert gone(bundles, RetentionRules(Bounds(max_bundles=3, max_age=30 * DAY))) == []
    assert gone(bundles, RetentionRules(Bounds(max_age=timedelta(microseconds=1)), keep_free_bytes=10**9)) == [
        ("old", "max_age"),
        ("middle", "max_age"),
        ("new", "max_age"),
    ]


BUNDLES = st.lists(
    st.builds(
        stored,
        st.uuids().map(str),
        st.floats(0, 100),
        st.integers(0, 1000),
        st.sampled_from("ab"),
        st.sampled_from([None, None, None, "session goes on"]),
    ),
    max_size=12,
)
BOUNDS = st.builds(Bounds, st.sampled_from([timedelta(0), DAY, 30 * DAY]), st.integers(0, 3000), st.integers(0, 6))


@given(BUNDLES, BOUNDS, st.integers(0, 5000), st.integers(0, 5000))
def test_after_pruning_the_bounds_hold_and_nothing_went_needlessly(
    bundles: list[StoredBundle], bounds: Bounds, keep_free: int, free: int
) -> None:
    """Whatever there is: a second look finds nothing, and each graph keeps what its bounds allow."""
    rules = RetentionRules(bounds, keep_free_bytes=keep_free)
    chosen = select_expired(bundles, rules, NOW, free)
    left = [bundle for bundle in bundles if bundle not in {choice.bundle for choice in chosen}]
    freed = sum(choice.bundle.size for choice in chosen)
    assert select_expired(left, rules, NOW, free + freed) == []
    assert all(choice.bundle.problem is None for choice in chosen)
    for graph in "ab":
        kept = [bundle for bundle in left if bundle.graph == graph and bundle.problem is None]
        if bounds.max_bundles:
            assert len(kept) <= bounds.max_bundles
        if bounds.max_bytes and len(kept) > 1:
            assert sum(bundle.size for bundle in kept) <= bounds.max_bytes
        assert not bounds.max_age or all(NOW - (b.ended_at or NOW) <= bounds.max_age for b in kept)
    assert not [c for c in chosen if c.reason == "keep_free_bytes"] or free < keep_free


def test_the_catalogue_lists_finished_bundles_from_the_oldest(tmp_path: Path) -> None:
    """Of every graph, compressed or not, with the size of the file."""
    new = store(tmp_path, "new", age=DAY)
    old = store(tmp_path, "old", graph="other", age=2 * DAY, compress=True)
    found = Catalogue(tmp_path / "bundles").read()
    assert [(b.path, b.graph, b.size, b.problem) for b in found] == [
        (old, "other", old.stat().st_size, None),
        (new, "g", new.stat().st_size, None),
    ]
    assert [difference_from_manifest(bundle) for bundle in found] == [None, None]


def test_the_catalogue_says_why_a_bundle_is_not_a_finished_one(tmp_path: Path) -> None:
    """Without manifest, of a running session, of another size, not a file of its own, of no time."""
    manifest_path(store(tmp_path, "a-bare")).unlink()
    store(tmp_path, "b-open", ended="open")
    with store(tmp_path, "c-longer").open("ab") as file:
        file.write(b" ")
    linked = store(tmp_path, "d-linked")
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    store(tmp_path, "e-timeless", ended_at="yesterday")
    manifest_path(store(tmp_path, "f-garbled")).write_bytes(b"{")
    store(tmp_path, "g-astray", bundle="../../lock")
    store(tmp_path, "h-newer", format="ergo-capture-manifest.v2")
    found = {b.path.name.partition(".")[0]: b.problem for b in Catalogue(tmp_path / "bundles").read()}
    size = (tmp_path / "bundles" / "g" / "c-longer.capture.json").stat().st_size
    assert found == {
        "a-bare": "no manifest",
        "b-open": "session goes on",
        "c-longer": f"{size} bytes, and {size - 1} by its manifest",
        "d-linked": "not a plain file",
        "e-timeless": "manifest says no time of its end",
        "f-garbled": "manifest unreadable",
        "g-astray": "manifest names another file",
        "h-newer": "manifest unreadable",
    }


def test_a_manifest_that_was_replaced_is_read_again_and_others_are_not(tmp_path: Path) -> None:
    """A snapshot's manifest becomes that of the whole; what is known of the rest stays known."""
    path = store(tmp_path, "a", ended="open")
    store(tmp_path, "b")
    catalogue = Catalogue(tmp_path / "bundles")
    before = {b.path.name: b for b in catalogue.read()}
    other = tmp_path / "other"
    manifest_path(store(other, "a")).replace(manifest_path(path))
    after = {b.path.name: b for b in catalogue.read()}
    assert (before[path.name].problem, after[path.name].problem) == ("session goes on", None)
    assert after["b.capture.json"].manifest is before["b.capture.json"].manifest


def test_a_bundle_that_differs_from_its_manifest_in_one_byte_is_found_out(tmp_path: Path) -> None:
    """Of the same size, and read whole."""
    path = store(tmp_path, "a")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (bundle,) = Catalogue(tmp_path / "bundles").read()
    assert bundle.problem is None
    assert difference_from_manifest(bundle) == "its bytes are not those that its manifest vouches for"


def test_a_bundle_that_has_become_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    """What is read is what would be deleted."""
    path = store(tmp_path, "a")
    (bundle,) = Catalogue(tmp_path / "bundles").read()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        difference_from_manifest(bundle)


def test_a_catalogue_of_a_place_that_is_not_there_says_so(tmp_path: Path) -> None:
    """With a sentence and a hint."""
    with pytest.raises(ErgoCaptureError, match="No such file") as raised:
        Catalogue(tmp_path / "bundles").read()
    assert raised.value.hint is not None
