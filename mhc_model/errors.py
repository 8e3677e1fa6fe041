"""Errors of the project. Each message names the value, the limit and the fix.

MHCError
├── ConfigError      a field of a configuration or a command-line value
├── GateError        a gate vector: wrong length, range or type
├── CheckpointError  a checkpoint directory: missing, truncated, altered, of another format
├── DataError        an input file: missing, malformed line, empty
└── EngineError      a generation request or the engine's state
"""


class MHCError(Exception):
    """Base of every error that this project raises for its users."""


class ConfigError(MHCError, ValueError):
    """A configuration value is outside what is allowed."""


class GateError(MHCError, ValueError):
    """A gate vector has the wrong length, range or type."""


class CheckpointError(MHCError):
    """A checkpoint directory is missing, incomplete, altered or of an unknown format."""


class DataError(MHCError):
    """An input file is missing, empty or has a malformed line."""


class EngineError(MHCError):
    """A generation request cannot be served, or the engine is in no state to serve it."""
