"""The write-ahead journal: what the daemon has acknowledged, on stable storage.

Owns: frames, segments, group commit to disk, the scan and recovery at start, bundles from frames.
Not here: who submits what and when (``server/writer.py``).
"""
