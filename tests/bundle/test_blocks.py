"""The beginnings of the blocks of an index, and the column of ids."""

from __future__ import annotations

from base64 import b64decode
from itertools import accumulate, pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.bundle.writer import elements
from ergo_capture.bundle.writer.elements import BlockRule, Elements, IdColumn, joined, marked
from ergo_capture.bundle.writer.expand import DecisionTexts, expand_events

LEAST = 40
SHARE = 2
MOST = 6


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of 40 bytes, or a quarter of the text before; six at the most."""
    monkeypatch.setattr(elements, "_LEAST_BLOCK", LEAST)
    monkeypatch.setattr(elements, "_SHARE", SHARE)
    monkeypatch.setattr(elements, "MAX_BLOCKS", MOST)
    monkeypatch.setattr(elements, "MARK_EVERY", 1)


def divided(texts: list[bytes], groups: list[int]) -> tuple[list[int], list[bytes]]:
    """Divide texts that come in groups into blocks; return the number of each block's first text, and the blocks."""
    rule, blocks, number = BlockRule(), list[bytes](), 0
    for count in groups:
        some = texts[number : number + count]
        part = joined(some, list(map(len, some)), number)
        for n, (start, end) in enumerate(pairwise([0, *rule.divide(part), len(part.text)])):
            if n:
                blocks.append(b"")
            if end > start:
                blocks[-1] += part.text[start:end]
        number += count
    return rule.firsts, blocks


@pytest.mark.usefixtures("small")
def test_a_block_begins_as_soon_as_the_one_before_is_large_enough() -> None:
    """It has the least size, later a share of the text before; after the largest number of blocks none begins."""
    texts = [b"," + bytes([97 + number % 26]) * 9 for number in range(80)]
    firsts, blocks = divided(texts, [80])
    assert b"".join(blocks) == b"".join(texts)
    assert len(blocks) == MOST
    # Blocks of 40, 40, 40, 40 bytes, then a quarter of what is before the next one: 53 bytes, rounded up to elements.
    assert firsts == [0, 4, 8, 12, 16, 22]
    for (first, after), block in zip(pairwise(firsts), blocks, strict=False):
        assert block == b"".join(texts[first:after])


@pytest.mark.usefixtures("small")
@given(st.lists(st.integers(1, 70), min_size=1, max_size=60), st.lists(st.integers(1, 9), min_size=60, max_size=60))
def test_blocks_do_not_depend_on_how_many_elements_come_at_a_time(sizes: list[int], groups: list[int]) -> None:
    """P11: a bundle that is composed while its session runs has the same blocks."""
    texts = [b"," + b"x" * (size - 1) for size in sizes]
    ends = [end for end in accumulate(groups) if end < len(sizes)]
    some = [after - before for before, after in pairwise([0, *ends, len(sizes)])]
    assert divided(texts, some) == divided(texts, [len(sizes)])


def test_text_without_a_mark_goes_on_with_its_block() -> None:
    """The text may be large."""
    rule = BlockRule()
    assert rule.divide(Elements(b",1", 1, [(0, 0)])) == [0]
    assert rule.divide(Elements(b",2" * (1 << 20), 1 << 20, [])) == []
    assert rule.divide(Elements(b"", 0, [])) == []
    assert rule.firsts == [0]


def test_marks_are_at_every_64th_element_and_at_large_ones() -> None:
    """They are counted from the beginning of the list, not from the first of these elements."""
    assert marked([1] * 200, 0) == [0, 64, 128, 192]
    assert marked([1] * 130, 3) == [61, 125]
    assert marked([1, 8 << 10, (8 << 10) - 1, 9 << 10, 1], 60) == [1, 3, 4]
    assert marked([1, 8 << 10], 60) == [1]
    assert marked([1, (8 << 10) - 1], 60) == []
    assert marked([], 64) == []


@pytest.mark.parametrize("groups", [[3, 70, 127], [64, 64, 72], [1, 63, 1, 135]], ids=str)
def test_marks_do_not_depend_on_how_many_elements_are_expanded_at_a_time(groups: list[int]) -> None:
    """P11: this holds for events and for decisions."""
    row = b'{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":%d,"nanos":0}}}\n'
    lines = [row % (number, number) for number in range(sum(groups))]
    ids = [f"e{number}" for number in range(len(lines))]

    def expanded(some: list[int]) -> list[tuple[bytes, list[tuple[int, int]]]]:
        decisions = DecisionTexts(iter([b"[[0,5,3],[0,0,%d]]" % (len(lines) - 3)]), None)
        found = [(bytearray(), list[tuple[int, int]]()) for _ in range(2)]
        number = 0
        for count in some:
            taken = decisions.take(ids[number : number + count])
            assert taken is not None
            events = expand_events(b"".join(lines[number : number + count]), number=number)[1]
            for (text, marks), part in zip(found, (events, taken), strict=True):
                marks.extend((len(text) + offset, number + place) for offset, place in part.marks)
                text.extend(part.text)
                assert part.number == count
            number += count
        return [(bytes(text), marks) for text, marks in found]

    assert list(expand_events(lines[0])[1].marks) == [(0, 0)]
    whole = expanded([len(lines)])
    assert expanded(groups) == whole
    for text, marks in whole:
        assert [place for _, place in marks] == [0, 64, 128, 192]
        assert all(text[offset : offset + 13] == b',{"event_id":' for offset, _ in marks)


def test_episodes_of_a_run_go_on_from_one_call_to_the_next() -> None:
    """A run may begin after a row of another kind."""
    decisions = DecisionTexts(iter([b"[[0,7,1],[0,20,6]]"]), None)
    texts = []
    for ids in (["a", "b", "c"], ["d"], ["e", "f", "g"]):
        taken = decisions.take(ids)
        assert taken is not None
        texts.append(bytes(taken.text))
    episodes = [int(part.split(b",")[0]) for part in b"".join(texts).split(b'"episode_id":')[1:]]
    assert episodes == [7, *range(20, 26)]


def test_the_column_of_ids_holds_half_a_checksum_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id has two bytes, little-endian; if there are too many events, there is no column."""
    monkeypatch.setattr(elements, "_MAX_IDS", 5)
    ids = ["a", "b", "ü", "", "e"]
    column = IdColumn()
    column.add(ids[:3])
    column.add(ids[3:])
    found = column.finish()
    assert found is not None
    assert b64decode(found) == b"".join((crc32(name.encode()) & 0xFFFF).to_bytes(2, "little") for name in ids)
    for counts in ([6], [3, 3], [5, 1, 0]):
        column = IdColumn()
        for count in counts:
            column.add(["x"] * count)
        assert column.finish() is None
