"""Group commit: the writer, its batches and thread, and segment garbage collection."""
