"""Diagnose damage, and save what can be proved of damaged bundles and journals."""
