"""Doubles: stand-ins for what cannot be made to fail on request.

Owns: a storage that fails by table, one whose calls can be held, one that forgets what was not synced;
composers of bundles that wait or find no room.
Not here: any test.
"""
