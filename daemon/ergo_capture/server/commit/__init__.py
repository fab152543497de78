"""The durable path: batches, the commit thread, segment garbage collection."""
