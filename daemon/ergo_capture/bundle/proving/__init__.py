"""Prove that a bundle is sound and that its decisions follow, as fast as it is read; ``verify.py`` decides the rest."""
