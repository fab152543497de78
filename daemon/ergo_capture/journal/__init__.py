"""The write-ahead journal: what the daemon has acknowledged, on stable storage."""
