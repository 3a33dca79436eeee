"""The process in which pictures are decoded and cut, under a memory limit. Run as a module by `pool.py`.

In: 4 bytes length (big-endian), JSON {"said", "path", "bytes"} and the cutting's "kind" and "options", then that many
bytes of a picture. Out: 4 bytes length, JSON: {"digest", "tiles", "grid"} once the pixels are in the file `path`
(`tiles` pieces along their first axis), or {"error"}. What kills this process (memory, a decoder's crash) is told by
the parent.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

from tokenmill.errors import RequestError
from tokenmill.vision.cutting import digest_of, from_description
from tokenmill.vision.decode import decode


def prepare(head: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Decodes, cuts and writes."""
    pixels, grid = from_description(head).cut(decode(data, head["said"]))
    fd = os.open(head["path"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(pixels.tobytes())
    return {"digest": digest_of(pixels, grid), "tiles": len(pixels), "grid": list(grid)}


def answer(head: dict[str, Any], data: bytes) -> dict[str, Any]:
    try:
        return prepare(head, data)
    except RequestError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "the image needs too much memory to decode: send a smaller one"}
    except OSError as error:
        return {"error": f"the pixels could not be kept ({error.strerror}): try again", "status": 503}


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    size = stream.read(4)
    if len(size) < 4:
        return None
    head = dict(json.loads(stream.read(int.from_bytes(size, "big"))))
    return head, stream.read(head["bytes"])


def main() -> None:
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sink = sys.stdout.buffer
    while (asked := receive(sys.stdin.buffer)) is not None:
        reply = json.dumps(answer(*asked)).encode()
        sink.write(len(reply).to_bytes(4, "big") + reply)
        sink.flush()


if __name__ == "__main__":
    main()
