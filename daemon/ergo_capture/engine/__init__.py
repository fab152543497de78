"""Engines: they run episodes for the daemon and for ``replay``."""
