"""Seals: signatures that chain a host's manifests, so that changed, missing or inserted ones are noticed."""
