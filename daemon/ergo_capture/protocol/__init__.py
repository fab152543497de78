"""The wire vocabularies, sans-I/O, each defined once for both sides."""
