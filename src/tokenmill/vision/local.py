"""A picture of the user's own disk as a data URL, for faces that send it on. Nothing is decoded here."""

from __future__ import annotations

import base64
from pathlib import Path

from tokenmill.errors import RequestError

MOST_BYTES = 20 << 20
# How files of each format begin, and the media type that says so.
BEGINNINGS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


def as_data_url(path: str | Path) -> str:
    """Raises RequestError where there is no such file, it is too large, or it is no picture we know."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MOST_BYTES:
            raise RequestError(f"{file} has {file.stat().st_size} bytes; an image has at most {MOST_BYTES}")
        data = file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}") from None
    kind = next((kind for start, kind in BEGINNINGS.items() if data.startswith(start)), None)
    if kind is None:
        raise RequestError(f"{file} is no image; {', '.join(BEGINNINGS.values())} are taken")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
