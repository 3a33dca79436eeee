"""The errors a user may meet. Each names the value, the limit and the fix, in one line, and is raised where known.

Anything else that reaches a user is a defect: the command line prints these as `error: ...` with `exit_code`, the HTTP
server as a body with `status`; neither shows a traceback.
"""

from __future__ import annotations


class TokenmillError(Exception):
    """Base of all errors meant for a user."""

    exit_code = 1


class ConfigError(TokenmillError):
    """An option, or a combination of options, that cannot be served."""

    exit_code = 2


class FormatError(TokenmillError):
    """A file or folder that is not what it must be."""

    exit_code = 3


class CapacityError(TokenmillError):
    """Not enough memory or room; says how much there is, how much is needed, and which flag fits."""

    exit_code = 4


class RequestError(TokenmillError):
    """A request that is refused. `status` is the HTTP status, `param` the field at fault, `code` a stable word."""

    exit_code = 5

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class EngineDeadError(TokenmillError):
    """The engine's process or thread ended; nothing more can be answered until it is started again."""

    exit_code = 6
