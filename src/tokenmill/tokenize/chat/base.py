"""Plain continuation: the messages' text and nothing else."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="base",
    capability="completion",
)
