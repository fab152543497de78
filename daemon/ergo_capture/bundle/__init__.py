"""Bundle files: their format, manifests, reading, writing and verifying."""
