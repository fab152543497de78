"""The reference's semantics, pure: no clock, no I/O, no asyncio, no logging, no randomness."""
