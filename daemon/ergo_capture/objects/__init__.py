"""Object stores: a port, and what is behind it; the keys under which bundles lie there."""
