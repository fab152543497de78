"""Read JSON as the reference's serde_json does."""
