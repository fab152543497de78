"""Prove at the speed of reading that a bundle is sound and that its decisions follow; the judge is ``verify.py``."""
