"""Doubles: stand-ins for what cannot be made to fail on request."""
