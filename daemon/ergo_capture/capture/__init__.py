"""Captures in memory and as bundle files on disk."""
