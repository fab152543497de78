"""Operation: control socket, status, metrics, systemd, reload, retention."""
