"""The reference's semantics as pure functions: no clock, no I/O, no asyncio, no logging, no randomness."""
