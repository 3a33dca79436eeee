"""Pictures in a conversation and in its token ids: image parts out of messages, placeholders into the prompt.

An image part becomes `words.start + words.context + words.end` in the text; in the ids, each `context` becomes one
token per vector of its picture, and a `MediaRef` says which picture fills them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RequestError
from tokenmill.types import MediaRef, Message
from tokenmill.vision.cutting import Cutting, Grid, Sized
from tokenmill.vision.decode import refuse

MOST_IMAGES = 16
PIXELS = ("min_pixels", "max_pixels")
IMAGE_PARTS = ("image_url", "image", "input_image")
# OpenAI's `detail` as LMDeploy reads it.
DETAIL = {"low": 6, "medium": 12, "high": 24}


@dataclass(frozen=True, slots=True)
class ImageWords:
    """What stands for a picture in the text, and the id whose copies its vectors replace.

    `joiner` stands between the parts of a message. `around` stands before and behind a picture in the prompt, where no
    template may strip it.
    """

    start: str
    context: str
    end: str
    context_id: int
    joiner: str = "\n"
    around: tuple[str, str] = ("", "")

    @property
    def text(self) -> str:
        return self.start + self.context + self.end

    def spread(self, prompt: str) -> str:
        """A rendered prompt with `around` in its places."""
        before, behind = self.around
        return prompt.replace(self.text, before + self.text + behind)


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture as a message holds it: a URL or the file's bytes; tiles or pixels where the part limits them."""

    source: str | bytes
    max_tiles: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def cutting(self, own: Cutting) -> Cutting:
        if self.max_tiles is not None:
            own = own.limited(self.max_tiles)
        return own.between(self.min_pixels, self.max_pixels) if isinstance(own, Sized) else own


@dataclass(frozen=True, slots=True)
class Placed:
    """A prepared picture: the digest and file of its pixels, how many vectors it becomes, and their grid."""

    digest: str
    path: Path
    num_tokens: int
    grid: Grid = ()


def take_images(messages: Sequence[Message], words: ImageWords) -> tuple[list[Message], list[ImagePart]]:
    """The messages with text in place of their pictures, and the pictures in order. Raises RequestError (400)."""
    found: list[ImagePart] = []
    plain = [_without_images(message, words, found) for message in messages]
    if len(found) > MOST_IMAGES:
        raise refuse(f"the conversation holds {len(found)} images; at most {MOST_IMAGES} are taken")
    return plain, found


def expand(ids: Sequence[int], words: ImageWords, images: Sequence[Placed]) -> tuple[tuple[int, ...], list[MediaRef]]:
    """Ids in which each picture has its room. Raises RequestError where text holds the placeholder itself."""
    if (count := sum(token == words.context_id for token in ids)) != len(images):
        raise RequestError(
            f"the prompt has {count} image placeholders and {len(images)} images: {words.context} may not stand in "
            "text", param="messages",
        )  # fmt: skip
    out: list[int] = []
    media: list[MediaRef] = []
    for token in ids:
        if token != words.context_id:
            out.append(token)
            continue
        image = images[len(media)]
        media.append(MediaRef(image.digest, len(out), image.num_tokens, str(image.path), image.grid))
        out += [token] * image.num_tokens
    return tuple(out), media


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, list | tuple) else ()


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGE_PARTS


def _without_images(message: Message, words: ImageWords, found: list[ImagePart]) -> Message:
    parts = _parts(message)
    if not parts:
        return message
    if message.get("role") == "system" and any(map(_is_image, parts)):
        raise refuse("a system message holds text only")
    if any(isinstance(part, dict) and "video" in str(part.get("type")) for part in parts):
        raise refuse("videos are not taken: send single pictures of it as image_url parts")
    texts = []
    for part in parts:
        if _is_image(part):
            found.append(image_part(part))
            part = {"type": "text", "text": words.text}
        texts.append(part)
    return {**message, "content": _joined(texts, words.joiner)}


def _joined(parts: list[Any], joiner: str) -> Any:
    """One text where this family's parts are joined otherwise than all others'; the parts where one is no text."""
    texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in parts]
    if joiner == "\n" or not all(isinstance(text, str) for text in texts):
        return parts
    return joiner.join(map(str, texts))


def image_part(part: Message) -> ImagePart:
    """One image part of a message: OpenAI's `image_url` (an object or the URL itself), or bytes under `image`."""
    value = part.get("image_url", part.get("image"))
    details = value if isinstance(value, dict) else part
    source = value.get("url") if isinstance(value, dict) else value
    if not isinstance(source, str | bytes) or not source:
        raise refuse("an image part has no url; send {\"type\": \"image_url\", \"image_url\": {\"url\": ...}}")
    tiles = details.get("max_dynamic_patch")
    if tiles is None:
        tiles = DETAIL.get(str(details.get("detail")))
    if tiles is not None and (isinstance(tiles, bool) or not isinstance(tiles, int) or not 1 <= tiles <= 24):
        raise refuse("max_dynamic_patch must be a whole number from 1 to 24")
    return ImagePart(source, tiles, *(_pixels(key, details.get(key, part.get(key))) for key in PIXELS))


def _pixels(key: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise refuse(f"{key} must be a positive whole number")
    return None if value is None else int(value)
