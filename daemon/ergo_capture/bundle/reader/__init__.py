"""Read bundles of any size in constant memory."""
