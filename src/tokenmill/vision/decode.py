"""Bytes of an image become RGB pixels, under limits: what is refused is refused from the header, before decoding.

png, jpeg, webp, gif (first frame) and bmp; 1 to 16,384 pixels a side and at most 64 million in all; turned as EXIF
says, alpha flattened on white. Whatever is wrong is a RequestError (400) in our own words: Pillow's may quote paths.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from tokenmill.errors import RequestError
from tokenmill.vision.local import MOST_BYTES

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_SIDE = 16_384
MOST_PIXELS = 64_000_000
# How a data URL or a file's name may call each format.
SPELLINGS = {
    "png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "jpe": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP",
    "x-ms-bmp": "BMP", "x-bmp": "BMP",
}  # fmt: skip
_WIDE = ("I;16", "I;16B", "I;16L", "I")


def refuse(message: str) -> RequestError:
    return RequestError(message, 400, param="image_url", code="invalid_image")


def decode(data: bytes, said: str = "") -> Image.Image:
    """An RGB image. `said`: the format that a media type or file name claims ("" claims nothing)."""
    if len(data) > MOST_BYTES:
        raise refuse(f"the image has {len(data)} bytes; at most {MOST_BYTES} are taken: send a smaller one")
    _check_webp(data)
    image = _open(data)
    if said and image.format != SPELLINGS.get(said):
        raise refuse(f"the image is called {said[:16]!r} but is {str(image.format).lower()}: name it what it is")
    check_size(*image.size)
    try:
        image.load()
        return _flat(ImageOps.exif_transpose(image))
    except MemoryError:
        raise refuse("the image needs too much memory to decode: send a smaller one") from None
    # Pillow's decoders and EXIF reader raise whatever a damaged file leads them to.
    except Exception:  # noqa: BLE001
        raise refuse("the image is damaged or cut short: it cannot be decoded") from None


def check_size(width: int, height: int) -> None:
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
        raise refuse(f"the image is {width} x {height} pixels; a side has 1 to {MOST_SIDE}: send a smaller one")
    if width * height > MOST_PIXELS:
        raise refuse(f"the image has {width * height} pixels; at most {MOST_PIXELS} are taken: send a smaller one")


def _open(data: bytes) -> Image.Image:
    """The header read, nothing decoded."""
    try:
        with warnings.catch_warnings():
            # Our own limit is stricter, and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise refuse(f"the image has too many pixels; at most {MOST_PIXELS} are taken: send a smaller one") from None
    except Exception:  # noqa: BLE001 - a header may fail in any way
        known = ", ".join(name.lower() for name in FORMATS)
        raise refuse(f"this is no image of a known format; {known} are taken") from None


def _check_webp(data: bytes) -> None:
    """Pillow's reader of webp takes memory for the whole canvas when it opens one, so its size is read here first."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        check_size(1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        check_size(width & 0x3FFF, height & 0x3FFF)


def _flat(image: Image.Image) -> Image.Image:
    """RGB without alpha. 16-bit grey keeps its upper byte, as converting it would cut it off at 255."""
    if image.mode in _WIDE:
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    ground = Image.new("RGB", seen.size, (255, 255, 255))
    ground.paste(seen, mask=seen.getchannel("A"))
    return ground
