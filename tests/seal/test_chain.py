"""A chain of seals: each single change to it is found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
import pytest

from ergo_capture.seal.chain import (
    ChainReport,
    Seal,
    Sealed,
    Tombstone,
    check_chain,
    decode_seal,
    decode_tombstones,
    encode_seal,
    make_seal,
    make_tombstone,
)
from ergo_capture.seal.keys import SealKey, generate_key

KEY = generate_key()
#: The last of the manifests that are tried.
LAST = 50


def manifest(number: int) -> bytes:
    """Return the text of a manifest."""
    return b'{"format":"ergo-capture-manifest.v1","session":"s%d","sequence":%d}\n' % (number, number)


def chain(numbers: Iterable[int] = range(1, LAST + 1), key: SealKey = KEY) -> list[Sealed]:
    """Return sealed manifests."""
    made, previous = [], None
    for number in numbers:
        text = manifest(number)
        seal = make_seal(key, number, previous, hashlib.sha256(text).hexdigest())
        previous = seal.link
        made.append(Sealed(f"s{number}", number, seal.manifest_sha256, seal))
    return made


def check(bundles: Iterable[Sealed], tombstones: Iterable[Tombstone] = (), key: str = KEY.public) -> ChainReport:
    """Check a chain."""
    return check_chain(bundles, tombstones, key)


def kinds(report: ChainReport) -> list[tuple[str, str]]:
    """Return where something is wrong, and what."""
    return [(finding.name, finding.kind) for finding in report.findings]


def test_a_chain_as_it_was_made_is_whole() -> None:
    """The order in which its links are found does not matter."""
    report = check(reversed(chain()))
    assert report == ChainReport((), LAST, 0, 1, LAST, is_whole=True)


def test_numbers_may_have_gaps() -> None:
    """A number is not used where its manifest could not be written."""
    assert check(chain([3, 4, 9])).findings == ()


@pytest.mark.parametrize("number", [1, 25, LAST])
def test_every_byte_of_a_manifest_counts(number: int) -> None:
    """Each is changed in turn."""
    sound, text = chain(), manifest(number)
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1
        bundles = list(sound)
        sha256 = hashlib.sha256(changed).hexdigest()
        bundles[number - 1] = bundles[number - 1]._replace(manifest_sha256=sha256)
        assert kinds(check(bundles)) == [(f"s{number}", "changed")]


@pytest.mark.parametrize("number", [1, 25, LAST])
def test_every_byte_of_a_seal_counts(number: int) -> None:
    """It cannot be read any more, or its signature does not fit."""
    sound = chain()
    seal = sound[number - 1].seal
    assert seal is not None
    text = msgspec.json.encode(seal)
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1
        bundles = list(sound)
        bundles[number - 1] = bundles[number - 1]._replace(seal=decode_seal(bytes(changed)))
        report = check(bundles)
        found = {kind for name, kind in kinds(report) if name == f"s{number}"}
        # The first one without its seal is as one from before there was a key, but the second names one before it.
        assert found & {"unsealed", "untrusted", "twice"} or not report.is_whole, (text, place)


@pytest.mark.parametrize("number", range(2, LAST))
def test_one_that_is_left_out_is_missed(number: int) -> None:
    """The bundle after it tells."""
    bundles = [each for each in chain() if each.number != number]
    assert kinds(check(bundles)) == [(f"s{number + 1}", "missing")]


def test_a_beginning_that_is_left_out_is_told() -> None:
    """It may have expired where the chain is kept."""
    report = check(chain()[1:])
    assert (report.findings, report.is_whole, report.first) == ((), False, 2)


def test_an_end_that_is_cut_off_is_not_seen() -> None:
    """It is seen only when a later seal is known, as the manual says."""
    assert check(chain()[:-3]) == ChainReport((), LAST - 3, 0, 1, LAST - 3, is_whole=True)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, LAST), (24, 26)])
def test_two_that_are_swapped_are_found(one: int, other: int) -> None:
    """Manifests, or manifests with their seals' numbers."""
    bundles = chain()
    first, second = bundles[one - 1], bundles[other - 1]
    bundles[one - 1] = first._replace(manifest_sha256=second.manifest_sha256)
    bundles[other - 1] = second._replace(manifest_sha256=first.manifest_sha256)
    assert kinds(check(bundles)) == [(f"s{one}", "changed"), (f"s{other}", "changed")]


def test_one_that_is_put_in_is_found() -> None:
    """It has no seal, one of another key, or the copy of a seal."""
    sound = chain()
    other = generate_key()
    text = hashlib.sha256(b"{}").hexdigest()
    forged = make_seal(other, 20, sound[18].seal.link if sound[18].seal else None, text)
    for seal, kind in ((None, "unsealed"), (forged, "untrusted"), (sound[19].seal, "changed")):
        assert kinds(check([*sound, Sealed("new", 20, text, seal)])) == [("new", kind)]


def test_what_was_published_before_there_was_a_key_is_not_in_the_chain() -> None:
    """Its number is smaller, or it has none."""
    bundles = [Sealed("old", None, "0" * 64, None), Sealed("older", 4, "0" * 64, None), *chain(range(5, 9))]
    assert check(bundles) == ChainReport((), 4, 0, 5, 8, is_whole=True)


def test_a_number_that_was_given_twice_is_told() -> None:
    """An older state directory was restored: its next seals name the same head as those that were lost."""
    bundles = chain()
    seal = bundles[29].seal
    assert seal is not None
    restored = make_seal(KEY, 31, seal.link, "1" * 64)
    report = check([*bundles, Sealed("again", 31, "1" * 64, restored)])
    assert kinds(report) == [("again, s31", "twice")]


# --- tombstones ---


def bury(bundle: Sealed, key: SealKey = KEY) -> Tombstone:
    """Return the tombstone of a bundle."""
    assert bundle.seal is not None
    return make_tombstone(key, bundle.seal, "2026-11-28T00:00:00Z", "max_age")


def test_what_was_pruned_in_order_is_not_missed() -> None:
    """Any of them, the first ones too."""
    bundles = chain()
    gone = (1, 2, 17, LAST)
    report = check([each for each in bundles if each.number not in gone], [bury(bundles[each - 1]) for each in gone])
    assert report == ChainReport((), LAST - 4, 4, 1, LAST, is_whole=True)


def test_a_tombstone_beside_its_bundle_is_nothing_wrong() -> None:
    """A kill came between the two."""
    bundles = chain()
    assert check(bundles, [bury(bundles[7])]).findings == ()


def test_a_tombstone_without_the_key_is_not_believed() -> None:
    """One whose text was changed is not believed either."""
    bundles = chain()
    left = [each for each in bundles if each.number != 10]
    forged = bury(bundles[9], generate_key())
    changed = msgspec.structs.replace(bury(bundles[9]), reason="because")
    for stone in (forged, changed):
        assert kinds(check(left, [stone])) == [("", "untrusted"), ("s11", "missing")]


def test_a_line_that_a_crash_cut_is_no_tombstone() -> None:
    """The lines around it are tombstones."""
    one, other = (msgspec.json.encode(bury(each)) for each in chain()[:2])
    assert [stone.seal.number for stone in decode_tombstones([one, other[:50], other])] == [
        1,
        2,
    ]


# --- keys ---


def test_a_key_that_was_endorsed_is_trusted() -> None:
    """So is one that it endorsed, and so on; a later key does not make an earlier one trusted."""
    second = generate_key(KEY)
    third = generate_key(second)
    bundles: list[Sealed] = []
    previous = None
    for number, key in enumerate([KEY, second, second, third], 1):
        seal = make_seal(key, number, previous, "2" * 64)
        previous = seal.link
        bundles.append(Sealed(f"s{number}", number, "2" * 64, seal))
    assert check(bundles).findings == ()
    report = check(bundles, key=third.public)
    assert kinds(report) == [("s1", "untrusted"), ("s2", "untrusted"), ("s3", "untrusted")]


def test_an_endorsement_that_was_copied_is_not_believed() -> None:
    """It names one key only."""
    second, stranger = generate_key(KEY), generate_key()
    claimed = msgspec.structs.replace(stranger, endorsement=second.endorsement)
    assert kinds(check(chain(range(1, 3), claimed))) == [("s1", "untrusted"), ("s2", "untrusted")]


def test_the_file_of_a_seal_is_read_back() -> None:
    """Another version is none."""
    (bundle,) = chain([1])
    assert bundle.seal is not None
    assert decode_seal(encode_seal(bundle.seal)) == bundle.seal
    other: Seal = msgspec.structs.replace(bundle.seal, format="ergo-capture-seal.v2")
    assert decode_seal(encode_seal(other)) is None
