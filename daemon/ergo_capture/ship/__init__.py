"""Ship finished bundles to object stores: a process of its own beside the daemon, which ships nothing."""
