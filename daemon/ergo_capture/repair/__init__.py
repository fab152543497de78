"""Diagnose damage, and salvage the provable part of damaged bundles and journals."""
