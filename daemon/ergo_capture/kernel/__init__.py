"""The reference's semantics, pure: no clock, no I/O, no asyncio, no logging, no randomness.

Owns: what an event, a decision and a bundle are, and how one follows from the other.
Not here: files (``capture``), durability (``journal``), sockets (``server``).
"""
