"""Errors of the project. Each message names the value, the limit and the fix.

MHCError
├── ConfigError      a field of a configuration or a command-line value
├── GateError        a gate vector: wrong length, range or type
├── CheckpointError  a checkpoint directory: missing, truncated, altered, of another format
├── DataError        an input file: missing, malformed line, empty
├── EngineError      a generation request or the engine's state
└── SessionError     a session over a long text: a range, a size, a source that does not fit
    ├── ProgramError     a program of verbs: its syntax, a name, a limit
    ├── BudgetError      the token budget does not cover the next call
    ├── CancelledError   the session was cancelled
    └── EndpointError    a model behind HTTP did not answer, or answered with an error
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


class SessionError(MHCError):
    """A verb of a session over a long text was given what it cannot work on."""


class ProgramError(SessionError, ValueError):
    """A program of verbs has a fault in its syntax, names something unknown, or is too large."""


class BudgetError(SessionError):
    """What is left of a session's token budget does not cover its next call of the model."""


class CancelledError(SessionError):
    """A session was cancelled or closed."""


class EndpointError(SessionError):
    """A model behind an HTTP endpoint could not be reached or answered with an error."""
