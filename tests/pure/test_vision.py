"""Pictures from strangers: each hostile one is refused with a 400, in time, and memory stays flat."""

from __future__ import annotations

import base64
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.pictures import data_url, encoded, picture, png_bomb

from tokenmill.errors import RequestError
from tokenmill.vision import fetch as web
from tokenmill.vision.cutting import digest_of
from tokenmill.vision.decode import decode
from tokenmill.vision.fetch import MediaPolicy, fetch
from tokenmill.vision.pool import WorkerPool
from tokenmill.vision.prompt import ImageWords, Placed, expand, take_images
from tokenmill.vision.store import PREFIX, MediaStore
from tokenmill.vision.tiles import Tiling, cut

TILING = Tiling(28, max_tiles=6)
WORDS = ImageWords("<img>", "<IMG_CONTEXT>", "</img>", 9)
GOOD = encoded(picture(60, 40))
WIDE_WEBP = b"RIFF\x2a\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + (16382).to_bytes(3, "little") * 2 + bytes(12)
HOSTILE = {
    "not an image": (b"hello, I am a picture" * 9, "", "known format"),
    "empty": (b"", "", "known format"),
    "cut short": (GOOD[: len(GOOD) // 2], "", "damaged"),
    "header only": (GOOD[:40], "", ""),
    "flipped": (GOOD[:90] + bytes(200) + GOOD[290:], "", "damaged"),
    "21 KB bomb": (png_bomb(12_000, 12_000, 600), "", "pixels"),
    "16k x 16k": (png_bomb(16_000, 16_000, 16), "", "pixels"),
    "too wide": (png_bomb(20_000, 10, 10), "", "20000 x 10"),
    "no pixels": (png_bomb(0, 10, 10), "", ""),
    "wrong name": (GOOD, "jpeg", "called"),
    "webp canvas": (WIDE_WEBP, "", "pixels"),
    "another format": (encoded(picture(9, 9), "TIFF"), "", "known format"),
    "text bomb": (encoded(picture(9, 9))[:33] + b"\0\0\0\x04iTXtabcd" + bytes(4), "", ""),
}  # fmt: skip


def refused(run: object, *args: object) -> str:
    with pytest.raises(RequestError) as caught:
        run(*args)  # type: ignore[operator]
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures(name: str) -> None:
    data, said, words = HOSTILE[name]
    text = refused(decode, data, said)
    assert words in text and "/" not in text.replace("x-ms", ""), text


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(form: str) -> None:
    image = picture(37, 21)
    found = decode(encoded(image, form, **({"lossless": True} if form == "WEBP" else {})), form.lower())
    assert found.mode == "RGB" and found.size == (37, 21)
    if form in ("PNG", "WEBP", "BMP"):
        assert np.array_equal(np.asarray(found), np.asarray(image))


def test_alpha_lies_on_white_and_exif_turns() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    turned = picture(20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(turned, "PNG", exif=exif)).size == (10, 20)
    deep = Image.fromarray(np.full((3, 3), 0x8000, np.uint16))
    assert decode(encoded(deep)).getpixel((1, 1)) == (128, 128, 128)
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(gif).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,%%%%", "data:image/png;base64," + base64.b64encode(GOOD).decode()[:-3],
        "data:text/html;base64,aGk=", "data:image/svg+xml;base64,aGk=", "data:image/png,abc", "data:image/png;base64",
        "data:image/png;base64," + "A" * (29 << 20), "http://127.0.0.1/x.png", "https://example.com/x.png",
        "file:///etc/passwd", "/etc/passwd", "ftp://example.com/x.png", "x" * 3000, "javascript:alert(1)", "a\0b",
    ],
    ids=lambda url: url[:24].encode("unicode_escape").decode(),
)  # fmt: skip
def test_sources_refused_by_default(url: str) -> None:
    assert "passwd" not in refused(fetch, url, MediaPolicy())


PRIVATE = ["127.0.0.1", "localhost", "10.0.0.8", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
           "2130706433", "0x7f.1", "192.168.1.1", "[fe80::1]", "100.64.0.1", "224.0.0.1",
           "[64:ff9b::10.0.0.8]"]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses(host: str) -> None:
    text = refused(fetch, f"http://{host}/x.png", MediaPolicy(domains=("*",)))
    assert "public" in text or "no address" in text


def test_urls_that_hide_something(monkeypatch: pytest.MonkeyPatch) -> None:
    only = MediaPolicy(domains=("good.example",))
    for url in ("http://good.example@evil.example/x", "http://evil.example#good.example", "http://good.example:22/x",
                "http://sub.good.example/x", "http://good.example:notaport/x", "http:///x"):  # fmt: skip
        refused(fetch, url, only)
    # One public and one private address: refused, whichever comes first.
    both = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert "public" in refused(fetch, "http://good.example/x", only)


class Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path.strip("/").partition("?")[0]
        if kind.startswith("hop"):
            self.send_response(302)
            self.send_header("Location", f"/hop{int(kind[3:]) - 1}" if kind != "hop0" else "/ok.png")
            self.end_headers()
            return
        if kind == "crawl":
            self.say_slowly(b"HTTP/1.1 200 OK\r\nX: ")
            return
        self.send_response(302 if kind == "inside" else 200)
        if kind == "inside":
            self.send_header("Location", "http://169.254.169.254/secret")
        self.end_headers()
        body = GOOD if kind == "ok.png" else bytes(3000) if kind == "big" else b""
        if kind == "slow":
            self.say_slowly(body)
        else:
            self.wfile.write(body)

    def say_slowly(self, start: bytes) -> None:
        try:
            self.wfile.write(start)
            for _ in range(1200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, MediaPolicy]]:
    """A web server on the loopback address, which the address check is told to allow."""
    server = HTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port, real = server.server_port, web.public_address
    monkeypatch.setattr(web, "public_address", lambda h, p: "127.0.0.1" if h == "good.example" else real(h, p))
    domains = ("good.example", "169.254.169.254")
    policy = MediaPolicy(domains, limit_s=60.0, most_bytes=2000 + len(GOOD), ports=(port, 80))
    yield f"http://good.example:{port}", policy
    server.shutdown()
    server.server_close()


def test_fetching(host: tuple[str, MediaPolicy], monkeypatch: pytest.MonkeyPatch) -> None:
    url, policy = host
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    got = fetch(f"{url}/ok.png?a=b", policy)
    assert got.data == GOOD and got.said == "png"
    assert fetch(f"{url}/hop2", policy).data == GOOD
    assert "redirected" in refused(fetch, f"{url}/hop9", policy)
    assert "public" in refused(fetch, f"{url}/inside", policy)
    small = MediaPolicy(policy.domains, most_bytes=1000, ports=policy.ports)
    assert "1000 bytes" in refused(fetch, f"{url}/big", small)
    # These would take a minute.
    for slow in ("slow", "crawl"):
        start = time.monotonic()
        assert "in time" in refused(fetch, f"{url}/{slow}", replace(policy, limit_s=1.0))
        assert time.monotonic() - start < 20


def test_files_under_the_allowed_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "secret.png"
    inside.mkdir()
    for path in (inside / "a b.png", outside):
        path.write_bytes(GOOD)
    (inside / "link.png").symlink_to(outside)
    (inside / "pipe.png").symlink_to("/dev/zero")
    policy = MediaPolicy(folder=inside)
    assert fetch(f"file://{inside}/a%20b.png", policy) == fetch(str(inside / "a b.png"), policy)
    answers = {refused(fetch, str(inside / name), policy) for name in ("link.png", "../secret.png", "pipe.png", "no")}
    assert len(answers) == 1


def test_workers_survive_and_stay_small(tmp_path: Path) -> None:
    """Every hostile picture through the pool, several times: a 400 each, and this process grows by next to nothing."""
    pool = WorkerPool(1)
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for round in range(2):
            for name, (data, said, _) in HOSTILE.items():
                path = tmp_path / f"{name}-{round}"
                refused(pool.prepare, data, said, TILING, path)
                assert not path.exists()
        done = pool.prepare(GOOD, "png", TILING, tmp_path / "good")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    finally:
        pool.close()
    tiles = cut(decode(GOOD), TILING)
    assert (done.tiles, done.digest) == (len(tiles), digest_of(tiles))
    assert (tmp_path / "good").read_bytes() == tiles.tobytes()


def test_late_and_hungry_workers_are_replaced(tmp_path: Path) -> None:
    big = encoded(Image.new("RGB", (7000, 7000)))
    hungry, late = WorkerPool(1, memory_bytes=320 << 20), WorkerPool(1, limit_s=0.05)
    try:
        refused(hungry.prepare, big, "", TILING, tmp_path / "a")
        assert hungry.prepare(GOOD, "", TILING, tmp_path / "b").tiles > 1
        assert "within" in refused(late.prepare, big, "", TILING, tmp_path / "c")
    finally:
        hungry.close()
        late.close()


def test_store_keeps_what_is_held_and_a_little_more(tmp_path: Path) -> None:
    store = MediaStore(most_bytes=3000, kept_bytes=1000, linger_s=0.0)
    from tokenmill.vision.pool import Cut

    def made(digest: str, size: int) -> Cut:
        path = store.new_path()
        path.write_bytes(bytes(size))
        return Cut(digest, 1, path)

    try:
        a = store.adopt(b"a", made("a", 900))
        assert store.adopt(b"a2", made("a", 900)).path == a.path and store.num_bytes == 900
        assert store.find(b"a2") == a and store.find(b"zzz") is None
        b = store.adopt(b"b", made("b", 900))
        with pytest.raises(RequestError) as caught:
            store.adopt(b"c", made("c", 2000))
        assert caught.value.status == 429 and sorted(p.name for p in a.path.parent.iterdir()) == ["a", "b"]
        store.release(("b",))
        assert b.path.exists()
        store.release(("a", "a", "a"))
        assert not a.path.exists() or not b.path.exists()
        assert store.num_bytes == 900
    finally:
        store.close()
    assert not a.path.parent.exists()


def test_folders_of_killed_processes_are_removed() -> None:
    store = MediaStore()
    folder = store.new_path().parent
    dead, alive = (folder.parent / f"{PREFIX}{pid}-x" for pid in (2**22 - 1, 1))
    other = MediaStore()
    try:
        dead.mkdir(exist_ok=True)
        alive.mkdir(exist_ok=True)
        assert other.new_path().parent.exists() and not dead.exists() and alive.exists() and folder.exists()
    finally:
        alive.rmdir()
        store.close()
        other.close()


def test_images_of_messages_and_their_room() -> None:
    url = data_url(GOOD)
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": ["and", {"type": "image", "image": b"raw"}]}]  # fmt: skip
    plain, images = take_images(talk, WORDS)
    assert [image.source for image in images] == [url, b"raw"] and images[0].cutting(TILING).max_tiles == 6
    assert plain[0]["content"] == [{"type": "text", "text": WORDS.text}, {"type": "text", "text": "what?"}]
    placed = [Placed("d1", Path("/a"), 3), Placed("d2", Path("/b"), 2)]
    ids, media = expand([1, 9, 2, 9, 3], WORDS, placed)
    assert ids == (1, 9, 9, 9, 2, 9, 9, 3)
    assert [(m.digest, m.offset, m.num_tokens, m.source) for m in media] == [("d1", 1, 3, "/a"), ("d2", 5, 2, "/b")]
    assert "may not stand in text" in refused(expand, [9, 9, 9], WORDS, placed)
    assert "at most 16" in refused(take_images, [{"role": "user", "content": [part] * 17}], WORDS)
    assert "no url" in refused(take_images, [{"role": "user", "content": [{"type": "image_url"}]}], WORDS)
