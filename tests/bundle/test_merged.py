"""The digest of what the context store gave to a bundle's events."""

from __future__ import annotations

import hashlib

from ergo_capture.bundle.merged import MergedDigest


def test_the_digest_is_that_of_the_documented_bytes() -> None:
    """Index, number of keys, then each key by its length."""
    digest = MergedDigest()
    digest.add(0, ())
    digest.add(2, ("a", "\u00e9t\u00e9"))
    digest.add(300, ("n",))
    records = (
        b"\0\0\0\0\0\0\0\2" + b"\0\0\0\2" + b"\0\0\0\1" + b"a" + b"\0\0\0\5" + "\u00e9t\u00e9".encode(),
        b"\0\0\0\0\0\0\1\x2c" + b"\0\0\0\1" + b"\0\0\0\1" + b"n",
    )
    assert digest.hexdigest() == hashlib.sha256(b"".join(records)).hexdigest()


def test_events_without_a_key_add_nothing() -> None:
    """So a bundle of a graph that writes nothing has a digest too."""
    digest = MergedDigest()
    for index in range(3):
        digest.add(index, ())
    assert digest.hexdigest() == hashlib.sha256().hexdigest()
