"""`lmdeploy.vl`: an image from wherever a program has it."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING

from tokenmill.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_TOKEN = "<IMAGE_TOKEN>"
MAX_BYTES = 64 << 20
FETCH_TIMEOUT_S = 10.0


def load_image(image_url: str | Image.Image) -> Image.Image:
    """An RGB image of a path, an http(s) or data URL, or an image. Raises ConfigError or FormatError."""
    from PIL import Image

    if isinstance(image_url, Image.Image):
        return image_url.convert("RGB")
    try:
        with Image.open(io.BytesIO(_bytes_of(image_url))) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise FormatError(f"{image_url[:80]} is no image that can be read: {error}") from None


def _bytes_of(url: str) -> bytes:
    if url.startswith(("http://", "https://")):
        return _fetch(url)
    if url.startswith("data:"):
        try:
            return base64.b64decode(url.split(",", 1)[1], validate=True)
        except (IndexError, binascii.Error):
            raise FormatError("the data URL is no base64") from None
    try:
        with open(url.removeprefix("file://"), "rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"the image {url} cannot be read: {error.strerror}") from None


def _fetch(url: str) -> bytes:
    import httpx

    try:
        reply = httpx.get(url, timeout=FETCH_TIMEOUT_S, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(f"the image {url} cannot be fetched: {error}") from None
    if len(reply.content) > MAX_BYTES:
        raise FormatError(f"the image {url} has {len(reply.content)} bytes; at most {MAX_BYTES} are taken")
    return reply.content
