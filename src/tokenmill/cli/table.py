"""Plain tables for stdout: columns aligned, numbers to the right. No colours, so that a pipe gets the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"[-+]?[\d.,]+%?x?( ?(GiB|MiB|s|ms|us))?")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of equal columns under a rule."""
    body = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *body]) for i in range(len(headers))]
    numeric = [all(NUMBER.fullmatch(row[i]) or not row[i] for row in body) and bool(body) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), "  ".join("-" * w for w in widths), *(line(row) for row in body)])
