"""Baichuan2: two reserved tokens mark the turns; a system text stands bare in front."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(name="baichuan2", user="<reserved_106>", assistant="<reserved_107>")
