"""The configuration: where its file is, what it says, what is wrong with it, and how it is printed."""

from ergo_capture.config.messages import known_keys
from ergo_capture.config.paths import SYSTEM_FILE, control_beside, usual_file, usual_socket, usual_state
from ergo_capture.config.printing import to_toml
from ergo_capture.config.reading import ConfigError, load, parse
from ergo_capture.config.settings import (
    Config,
    FixedEngineConfig,
    GraphConfig,
    GraphRetentionConfig,
    ScriptedEngineConfig,
)

__all__ = [
    "SYSTEM_FILE",
    "Config",
    "ConfigError",
    "FixedEngineConfig",
    "GraphConfig",
    "GraphRetentionConfig",
    "ScriptedEngineConfig",
    "control_beside",
    "known_keys",
    "load",
    "parse",
    "to_toml",
    "usual_file",
    "usual_socket",
    "usual_state",
]
