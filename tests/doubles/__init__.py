"""Doubles: stand-ins for what cannot be made to fail on request.

Owns: a storage that fails by table, a storage that forgets what was not synced.
Not here: any test.
"""
