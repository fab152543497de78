"""Doubles of storage and composers that fail, wait or lose data when a test says so."""
