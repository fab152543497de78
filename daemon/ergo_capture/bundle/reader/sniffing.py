"""What is taken for a bundle and is something else."""

from __future__ import annotations

from typing import Final

#: Bytes of a text that ``looks_like`` wants to see.
HEAD_BYTES: Final = 4096

_GZIP: Final = b"\x1f\x8b"


def looks_like(head: bytes) -> tuple[str, str] | None:
    """What a text that begins so seems to be, and what to do with it; None where it may be a damaged bundle."""
    begin = head.lstrip(b" \t\r\n")
    if not begin:
        return "it is empty", "a bundle is never published empty: look for what wrote or copied this file"
    if begin.startswith(b"{"):
        key = begin[1:].lstrip(b" \t\r\n")
        if key.startswith((b'"event_id"', b'"type"')):
            return "these are events, and no bundle of them", "capture them with `ergo-capture send FILE`"
        if key.startswith(b'"format"') and b"manifest" in head:
            return "it is a bundle's manifest", "name the *.capture.json file beside it"
        return None
    if begin.startswith(b"["):
        # The reference reads a bundle from an array of its fields too.
        return None
    if head.startswith(_GZIP):
        return "it is compressed with gzip", "bundles are read plain or as .zst: unpack it with gunzip first"
    if _is_text(head):
        return "it is no JSON object", "name a *.capture.json file"
    return (
        "it is no text",
        "name a *.capture.json file; for the segments of a journal there is `ergo-capture doctor DIRECTORY`",
    )


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # Why not all of it: the head may end within a character.
        return error.start > len(head) - 4 and len(head) >= HEAD_BYTES
    return b"\0" not in head
