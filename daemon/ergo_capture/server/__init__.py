"""The daemon: sockets, connections, sessions, the writer, and what ties them together.

Owns: everything asynchronous on the serving side.
Not here: what a decision is (``kernel``), what is durable (``journal``), the client (``client``).
"""
