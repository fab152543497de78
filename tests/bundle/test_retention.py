"""The bundles that retention selects, and the catalogue of bundles."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.bundles import DAY, NOW, manifest_of, store

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle, difference_from_manifest
from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.retention import Bounds, RetentionRules, select_expired, suspect_times
from ergo_capture.errors import ErgoCaptureError


def stored(
    name: str,
    days: float,
    size: int = 100,
    graph: str = "g",
    problem: str | None = None,
    sequence: int | None = None,
    device: int = 0,
) -> StoredBundle:
    """Return a bundle that ended that many days ago, as its manifest says."""
    manifest = None if sequence is None else numbered(sequence)
    return StoredBundle(Path(graph) / name, graph, size, manifest, NOW - days * DAY, problem, device=device)


def numbered(sequence: int) -> Manifest:
    """Return a manifest with this number."""
    manifest = manifest_of(Path(__file__), Path(__file__).read_bytes(), "g", NOW)
    return msgspec.structs.replace(manifest, sequence=sequence)


def selected(bundles: list[StoredBundle], rules: RetentionRules, free: int = 0) -> list[tuple[str, str]]:
    """Return the names of the selected bundles, each with the bound that it exceeds."""
    return [(choice.bundle.path.name, choice.reason) for choice in select_expired(bundles, rules, NOW, {0: free})]


THREE = [stored("new", 1), stored("old", 3), stored("middle", 2)]


def test_nothing_is_selected_without_a_bound() -> None:
    """The age and the number of bundles do not matter."""
    assert not RetentionRules().are_set
    assert selected([*THREE, stored("ancient", 10_000)], RetentionRules()) == []


def test_bundles_above_the_age_are_selected() -> None:
    """The age counts from the end of the part. The newest bundle stays, and so does one of exactly that age."""
    assert selected(THREE, RetentionRules(Bounds(max_age=2 * DAY))) == [("old", "max_age")]
    assert [name for name, _ in selected(THREE, RetentionRules(Bounds(max_age=timedelta(hours=1))))] == [
        "old",
        "middle",
    ]


def test_the_oldest_bundles_above_the_number_are_selected() -> None:
    """The newest ones are kept."""
    assert selected(THREE, RetentionRules(Bounds(max_bundles=2))) == [("old", "max_bundles")]


def test_the_oldest_bundles_above_the_size_are_selected() -> None:
    """A small old bundle does not fill the space that a large newer one leaves."""
    bundles = [stored("new", 1, 60), stored("large", 2, 70), stored("small", 3, 10)]
    assert selected(bundles, RetentionRules(Bounds(max_bytes=100))) == [("small", "max_bytes"), ("large", "max_bytes")]


def test_the_newest_bundle_is_kept_whatever_its_size() -> None:
    """Its client has only just been told its path."""
    assert selected([stored("huge", 1, 10**9)], RetentionRules(Bounds(max_bytes=1))) == []


def test_each_graph_has_its_own_count_and_bounds() -> None:
    """A busy graph does not displace another graph's bundles."""
    bundles = [stored(f"{graph}{n}", n, graph=graph) for graph in ("a", "b") for n in range(3)]
    rules = RetentionRules(Bounds(max_bundles=2), {"b": Bounds(max_bundles=1)})
    assert selected(bundles, rules) == [("a2", "max_bundles"), ("b2", "max_bundles"), ("b1", "max_bundles")]


def test_free_space_is_made_from_the_oldest_of_all_graphs() -> None:
    """No more than needed is deleted, the newest of a graph stays, and what other bounds free counts too."""
    bundles = [stored("a0", 9, graph="a"), *(stored(f"b{n}", n, graph="b") for n in (1, 2, 3))]
    assert selected(bundles, RetentionRules(keep_free_bytes=150), free=50) == [("b3", "keep_free_bytes")]
    assert selected(bundles, RetentionRules(keep_free_bytes=150), free=150) == []
    assert [name for name, _ in selected(bundles, RetentionRules(keep_free_bytes=10_000))] == ["b3", "b2"]
    rules = RetentionRules(Bounds(max_bundles=2), keep_free_bytes=200)
    assert selected(bundles, rules, free=100) == [("b3", "max_bundles")]


def test_unfinished_bundles_are_neither_selected_nor_counted() -> None:
    """Ten damaged bundles do not displace sound ones."""
    bundles = [*THREE, *(stored(f"bad{n}", 0, problem="no manifest") for n in range(10))]
    assert selected(bundles, RetentionRules(Bounds(max_bundles=3, max_age=30 * DAY))) == []
    assert selected(bundles, RetentionRules(Bounds(max_age=timedelta(microseconds=1)), keep_free_bytes=10**9)) == [
        ("old", "max_age"),
        ("middle", "max_age"),
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
def test_after_pruning_the_bounds_hold_and_nothing_more_is_selected(
    bundles: list[StoredBundle], bounds: Bounds, keep_free: int, free: int
) -> None:
    """This holds for any bundles and bounds."""
    rules = RetentionRules(bounds, keep_free_bytes=keep_free)
    chosen = select_expired(bundles, rules, NOW, {0: free})
    left = [bundle for bundle in bundles if bundle not in {choice.bundle for choice in chosen}]
    freed = sum(choice.bundle.size for choice in chosen)
    assert select_expired(left, rules, NOW, {0: free + freed}) == []
    assert all(choice.bundle.problem is None for choice in chosen)
    for graph in "ab":
        kept = [bundle for bundle in left if bundle.graph == graph and bundle.problem is None]
        if bounds.max_bundles:
            assert len(kept) <= bounds.max_bundles
        if bounds.max_bytes and len(kept) > 1:
            assert sum(bundle.size for bundle in kept) <= bounds.max_bytes
        ages = sorted(NOW - (b.ended_at or NOW) for b in kept)
        assert not bounds.max_age or all(age <= bounds.max_age for age in ages[1:])
        assert bool(kept) == any(b.graph == graph and b.problem is None for b in bundles)
    assert not [c for c in chosen if c.reason == "keep_free_bytes"] or free < keep_free


# --- wrong clocks ---


def test_bundles_go_in_the_order_of_their_numbers() -> None:
    """Their times do not matter: the clock was years ahead for the first two. Those without a number are older."""
    bundles = [
        stored("ahead", -3000, sequence=1),
        stored("ahead too", -2999, sequence=2),
        stored("right", 1, sequence=3),
        stored("newest", 0.5, sequence=4),
        stored("of 0.1.0", -4000),
    ]
    assert selected(bundles, RetentionRules(Bounds(max_bundles=2))) == [
        (name, "max_bundles") for name in ("of 0.1.0", "ahead", "ahead too")
    ]
    assert [name for name, _ in selected(bundles, RetentionRules(keep_free_bytes=250))] == [
        "of 0.1.0", "ahead", "ahead too",
    ]  # fmt: skip
    assert [bundle.path.name for bundle in suspect_times(bundles, NOW)] == ["of 0.1.0", "ahead", "ahead too"]


def test_a_time_in_the_future_is_no_age() -> None:
    """Such a bundle goes by age when a bundle that was published after it does."""
    rules = RetentionRules(Bounds(max_age=10 * DAY))
    ahead = [stored("before", 30, sequence=1), stored("ahead", -3000, sequence=2)]
    assert selected([*ahead, stored("after", 9, sequence=3)], rules) == [("before", "max_age")]
    later = [stored("after", 11, sequence=3), stored("newest", 0, sequence=4)]
    assert [name for name, _ in selected([*ahead, *later], rules)] == ["before", "ahead", "after"]
    # One without a number is older than all that have one.
    assert [name for name, _ in selected([*ahead, stored("of 0.1.0", -3000)], rules)] == ["of 0.1.0", "before"]


def test_a_time_before_that_of_an_earlier_bundle_is_no_age() -> None:
    """The clock was behind (1970, or a month); the bundle counts as being as young as the one before it."""
    rules = RetentionRules(Bounds(max_age=10 * DAY))
    bundles = [stored("before", 2, sequence=1), stored("behind", 32, sequence=2), stored("1970", 20_780, sequence=3)]
    assert selected([*bundles, stored("newest", 0, sequence=4)], rules) == []
    assert [bundle.path.name for bundle in suspect_times(bundles, NOW)] == ["1970"]
    older = [stored("before", 12, sequence=1), stored("behind", 32, sequence=2), stored("newest", 0, sequence=4)]
    assert [name for name, _ in selected(older, rules)] == ["before", "behind"]


def test_the_first_bundles_of_a_clock_that_nobody_had_set_are_kept() -> None:
    """No bundle before them tells how young they are."""
    bundles = [stored("1970", 20_780, sequence=1), stored("right", 1, sequence=2), stored("newest", 0, sequence=3)]
    assert selected(bundles, RetentionRules(Bounds(max_age=10 * DAY))) == []


def test_the_newest_bundle_of_each_graph_is_never_selected() -> None:
    """This applies to every bound, the age included."""
    bundles = [stored(f"{graph}{n}", 100, graph=graph, sequence=n) for graph in ("a", "b") for n in (1, 2)]
    bounds = Bounds(max_age=DAY, max_bundles=1, max_bytes=1)
    assert selected(bundles, RetentionRules(bounds, keep_free_bytes=10**9)) == [("a1", "max_age"), ("b1", "max_age")]


def test_only_bundles_on_a_disk_that_is_short_make_room() -> None:
    """A graph's directory may be a link to another disk."""
    bundles = [stored(f"{graph}{n}", 9 - n, graph=graph, device=at) for at, graph in enumerate("ab") for n in range(3)]
    chosen = select_expired(bundles, RetentionRules(keep_free_bytes=150), NOW, {0: 1000, 1: 50})
    assert [choice.bundle.path.name for choice in chosen] == ["b0"]


# --- the catalogue ---


def test_a_graphs_directory_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """The link may lead to a larger disk. A second name for the same directory does not count its bundles twice."""
    store(tmp_path / "disk", "x", graph="g")
    (tmp_path / "bundles").mkdir()
    for name in ("g", "again"):
        (tmp_path / "bundles" / name).symlink_to(tmp_path / "disk" / "bundles" / "g")
    (tmp_path / "bundles" / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "bundles" / "loop").symlink_to(tmp_path / "bundles")
    (found,) = Catalogue(tmp_path / "bundles").read()
    assert (found.graph, found.problem, found.path.name) == ("g", None, "x.capture.json")
    store(tmp_path, "y", graph="real")
    (tmp_path / "bundles" / "alias").symlink_to("real")
    assert {str(b.path.relative_to(tmp_path)) for b in Catalogue(tmp_path / "bundles").read() if b.graph == "real"} == {
        "bundles/real/y.capture.json"
    }


def test_a_bundle_that_was_compressed_since_is_the_same(tmp_path: Path) -> None:
    """Its text is the one that its manifest describes; a different text is a difference."""
    path = store(tmp_path, "a")
    text = path.read_bytes()
    path.unlink()
    packed = path.with_name("a.capture.json.zst")
    for content, difference in ((text, None), (text.replace(b"e0", b"e9", 1), "differs")):
        packed.write_bytes(zstandard.compress(content))
        (bundle,) = Catalogue(tmp_path / "bundles").read()
        assert (bundle.path, bundle.problem) == (packed, None)
        found = difference_from_manifest(bundle)
        assert found is None if difference is None else found is not None


def test_the_catalogue_lists_the_oldest_bundles_first(tmp_path: Path) -> None:
    """Bundles of all graphs are listed, compressed or not, with the size of the file."""
    new = store(tmp_path, "new", age=DAY)
    old = store(tmp_path, "old", graph="other", age=2 * DAY, compress=True)
    found = Catalogue(tmp_path / "bundles").read()
    assert [(b.path, b.graph, b.size, b.problem) for b in found] == [
        (old, "other", old.stat().st_size, None),
        (new, "g", new.stat().st_size, None),
    ]
    assert [difference_from_manifest(bundle) for bundle in found] == [None, None]


def test_the_catalogue_reports_why_a_bundle_is_not_finished(tmp_path: Path) -> None:
    """The reasons are: no manifest, a running session, another size, a link, no time."""
    manifest_path(store(tmp_path, "a-bare")).unlink()
    store(tmp_path, "b-open", ended="open")
    with store(tmp_path, "c-longer").open("ab") as file:
        file.write(b" ")
    linked = store(tmp_path, "d-linked")
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    store(tmp_path, "e-timeless", ended_at="yesterday")
    manifest_path(store(tmp_path, "f-garbled")).write_bytes(b"{")
    store(tmp_path, "g-renamed", bundle="../../lock")
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
        "g-renamed": None,
        "h-newer": "manifest unreadable",
    }


def test_the_catalogue_reads_only_changed_manifests_again(tmp_path: Path) -> None:
    """A snapshot's manifest is replaced by the final one."""
    path = store(tmp_path, "a", ended="open")
    store(tmp_path, "b")
    catalogue = Catalogue(tmp_path / "bundles")
    before = {b.path.name: b for b in catalogue.read()}
    other = tmp_path / "other"
    manifest_path(store(other, "a")).replace(manifest_path(path))
    after = {b.path.name: b for b in catalogue.read()}
    assert (before[path.name].problem, after[path.name].problem) == ("session goes on", None)
    assert after["b.capture.json"].manifest is before["b.capture.json"].manifest


def test_a_lasting_catalogue_keeps_no_manifest_whole(tmp_path: Path) -> None:
    """A daemon keeps thousands of them, and a context store may have 16 MiB; a listing for output has all fields."""
    large: dict[str, Any] = {"store": {"key": "x"}, "summary": {"version": 1}, "labels": {"a": "b"}, "peer": {"uid": 1}}
    store(tmp_path, "a", **large)
    (listed,) = Catalogue(tmp_path / "bundles").read()
    (whole,) = Catalogue(tmp_path / "bundles", whole=True).read()
    assert listed.manifest is not None
    assert whole.manifest is not None
    assert [getattr(listed.manifest, name) for name in large] == [None, None, {}, None]
    assert [getattr(whole.manifest, name) for name in large] == list(large.values())
    assert listed == whole
    assert difference_from_manifest(listed) is None


def test_one_changed_byte_is_a_difference_from_the_manifest(tmp_path: Path) -> None:
    """The size is unchanged."""
    path = store(tmp_path, "a")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (bundle,) = Catalogue(tmp_path / "bundles").read()
    assert bundle.problem is None
    assert difference_from_manifest(bundle) == "its SHA-256 differs from its manifest"


def test_a_bundle_replaced_by_a_link_is_not_followed(tmp_path: Path) -> None:
    """The file that is examined is the one that would be deleted."""
    path = store(tmp_path, "a")
    (bundle,) = Catalogue(tmp_path / "bundles").read()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        difference_from_manifest(bundle)


def test_a_missing_directory_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """The error names the directory."""
    with pytest.raises(ErgoCaptureError, match="No such file") as raised:
        Catalogue(tmp_path / "bundles").read()
    assert raised.value.hint is not None
