"""Engines: what runs an episode for the daemon."""
