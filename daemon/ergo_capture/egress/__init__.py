"""Egress channels: the processes that carry out intents."""
