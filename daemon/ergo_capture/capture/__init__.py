"""Captures in memory and as bundle files on disk.

Owns: the capturing decision log and session, bundle files, atomic writes.
Not here: the journal of a running daemon (``journal``).
"""
