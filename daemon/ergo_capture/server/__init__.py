"""The daemon: sockets, connections, sessions, the writer, and what ties them together."""
