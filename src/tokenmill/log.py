"""The one logger. Values are repr-escaped and cut, so that nobody writes control sequences or prompts into a log."""

from __future__ import annotations

import logging
import sys

from tokenmill import env

MAX_FIELD_CHARS = 2048


def get_logger() -> logging.Logger:
    """The package's logger; `configure` gives it a handler once, in a process that owns its stderr."""
    return logging.getLogger("tokenmill")


def configure(level: str | None = None) -> logging.Logger:
    """Send the package's log to stderr (and to the log file the environment names). Safe to call again."""
    logger = get_logger()
    logger.setLevel((level or env.log_level()).upper())
    if not logger.handlers:
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
        path = env.log_file()
        if path:
            handlers.append(logging.FileHandler(path))
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logger.addHandler(handler)
        logger.propagate = False
    return logger


def safe(value: object, limit: int = MAX_FIELD_CHARS) -> str:
    """`value` as one printable line of at most `limit` characters: CR, LF and escapes shown, not obeyed."""
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
