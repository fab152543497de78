"""Compose bundles from the journal."""
