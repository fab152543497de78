"""Render a bundle as an HTML page."""
