"""Ship finished bundles to object stores, in a process of its own beside the daemon."""
