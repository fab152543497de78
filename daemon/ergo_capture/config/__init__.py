"""The configuration: finding its file, reading it, explaining errors in it, and printing it."""

from ergo_capture.config.graphs import FixedEngineConfig, GraphConfig, GraphRetentionConfig, ScriptedEngineConfig
from ergo_capture.config.messages import known_keys
from ergo_capture.config.paths import (
    SYSTEM_FILE,
    control_socket_beside,
    default_file,
    default_socket,
    default_state_directory,
)
from ergo_capture.config.printing import to_toml
from ergo_capture.config.reading import ConfigError, load, parse
from ergo_capture.config.settings import Config

__all__ = [
    "SYSTEM_FILE",
    "Config",
    "ConfigError",
    "FixedEngineConfig",
    "GraphConfig",
    "GraphRetentionConfig",
    "ScriptedEngineConfig",
    "control_socket_beside",
    "default_file",
    "default_socket",
    "default_state_directory",
    "known_keys",
    "load",
    "parse",
    "to_toml",
]
