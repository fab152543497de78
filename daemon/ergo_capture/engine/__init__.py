"""Engines: what runs an episode for the daemon.

Owns: the engine port and one engine a file.
Not here: when an episode runs (``kernel/supervisor.py``), which engine a graph has (``settings.py``).
"""
