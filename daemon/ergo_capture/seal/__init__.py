"""Seals: signed links that make a chain of a host's manifests, so that none can be changed, left out or put in unseen."""
