"""Where a picture comes from: a data URL, a file, the web. What is not allowed is refused before anything is opened.

A data URL holds base64 of an image. A file must lie under the allowed folder once all links are followed. An http(s)
URL needs its exact host on the list; the name is looked up once, every address it has must be a public one, and the
connection goes to that address. Redirects are held to the same rules. Proxies of the environment are not used.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from tokenmill.errors import RequestError
from tokenmill.vision.decode import SPELLINGS, refuse
from tokenmill.vision.local import MOST_BYTES

FETCH_LIMIT_S = 10.0
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
MOST_REDIRECTS = 3
MOST_URL = 2048
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Hosts by exact name ("*": any public one), a folder of files, and how much time and room a picture has."""

    domains: tuple[str, ...] = ()
    folder: Path | None = None
    limit_s: float = FETCH_LIMIT_S
    most_bytes: int = MOST_BYTES
    ports: tuple[int, ...] = field(default=(80, 443))


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes of a file, and the format that its media type or name claims ("": nothing)."""

    data: bytes
    said: str = ""


def fetch(reference: str, policy: MediaPolicy) -> Fetched:
    """The picture behind a URL. Raises RequestError (400); blocks, so it belongs on a thread."""
    scheme = reference[:8].partition(":")[0].lower()
    if scheme == "data":
        return from_data_url(reference, policy.most_bytes)
    if len(reference) > MOST_URL:
        raise refuse(f"the image's URL has {len(reference)} characters; at most {MOST_URL} are taken")
    if scheme in ("http", "https"):
        return _from_web(reference, policy)
    return _from_file(reference, policy)


def from_data_url(url: str, most_bytes: int = MOST_BYTES) -> Fetched:
    head, comma, body = url.partition(",")
    kind = head[len("data:") :].lower()
    if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
        raise refuse("a data URL must begin with data:image/...;base64, and hold the image in base64")
    if len(body) * 3 // 4 > most_bytes + 2:
        raise refuse(f"the image has more than {most_bytes} bytes: send a smaller one")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("the image's base64 is cut short or holds other characters") from None
    said = kind[len("image/") : -len(";base64")].partition(";")[0]
    if said not in SPELLINGS:
        raise refuse(f"image/{said[:16]} is not taken; png, jpeg, webp, gif and bmp are")
    return Fetched(data, said)


def _from_file(reference: str, policy: MediaPolicy) -> Fetched:
    if policy.folder is None:
        raise refuse("images are taken as data URLs only; files need a server started with --allowed-local-media-path")
    path = Path(unquote(urlsplit(reference).path) if reference.lower().startswith("file:") else reference)
    try:
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(policy.folder))
        inside = real.is_relative_to(root)
        data = _read_file(real, policy.most_bytes) if inside else None
    except (OSError, ValueError):
        data = None
    if data is None:
        # One answer for what is outside, absent and unreadable: it tells nobody which files exist.
        raise refuse("there is no such image under the folder that --allowed-local-media-path names")
    return Fetched(data, _said_by_name(real.name))


def _read_file(path: Path, most_bytes: int) -> bytes:
    # Not a pipe or device, which would hold the thread.
    if not path.is_file():
        raise OSError("no plain file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise refuse(f"the image has more than {most_bytes} bytes: send a smaller one")
    return data


def _said_by_name(name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    return ending if "." in name and ending in SPELLINGS else ""


# ---- the web


def _from_web(url: str, policy: MediaPolicy) -> Fetched:
    deadline = time.monotonic() + policy.limit_s
    for _ in range(MOST_REDIRECTS + 1):
        answer = _get(url, policy, deadline)
        if isinstance(answer, Fetched):
            return answer
        url = urljoin(url, answer)
    raise refuse(f"the image's URL is redirected more than {MOST_REDIRECTS} times")


def public_address(host: str, port: int) -> str:
    """The address to connect to. Raises RequestError unless every address of the name is public."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise refuse("the image's host has no address") from None
    for text in found:
        inner = _inner(ipaddress.ip_address(text.partition("%")[0]))
        if not inner.is_global or inner.is_multicast:
            raise refuse("the image's host is not on the public network")
    return found[0]


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one carries: mapped, or behind NAT64's well-known prefix (RFC 6052)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


def _get(url: str, policy: MediaPolicy, deadline: float) -> Fetched | str:
    """The picture, or where the host sends us."""
    host, port, secure, target = _taken_apart(url, policy)
    address = public_address(host, port)
    left = max(0.1, deadline - time.monotonic())
    connection = _Pinned(host, port, address, secure, left)
    # A timeout bounds each wait; a host that sends a byte now and then would hold this thread for hours.
    cut = threading.Timer(left, connection.cut)
    cut.daemon = True
    cut.start()
    try:
        connection.request("GET", target, headers={"User-Agent": "tokenmill", "Accept": "image/*"})
        answer = connection.getresponse()
        if answer.status in _REDIRECTS:
            return answer.getheader("Location") or ""
        if answer.status != 200:
            raise refuse(f"the image's host answered {answer.status}")
        return Fetched(_body(answer, connection, policy.most_bytes, deadline), _said_by_name(urlsplit(url).path))
    except (OSError, http.client.HTTPException):
        raise refuse("the image could not be fetched from its host in time") from None
    finally:
        cut.cancel()
        connection.close()


def _taken_apart(url: str, policy: MediaPolicy) -> tuple[str, int, bool, str]:
    """Host, port, TLS and path of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise refuse("the image's URL is no URL") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise refuse("the image's URL must be http(s)://host/path without a name or password")
    if host not in policy.domains and "*" not in policy.domains:
        raise RequestError(
            "images are not fetched from this host; send a data URL, or start the server with --allowed-media-domains",
            400, param="image_url", code="invalid_image",
        )  # fmt: skip
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    if port not in policy.ports:
        raise refuse(f"images are not fetched from port {port}; use {' or '.join(map(str, policy.ports))}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(letter) <= 32 or ord(letter) > 126 for letter in target):
        raise refuse("the image's URL must be percent-encoded")
    return host, port, secure, target


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever its name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure
        self._stream: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self._stream = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            # Handshaken by hand, as the plain socket is gone once it is wrapped and `cut` must have the new one.
            context = ssl.create_default_context()
            self.sock = self._stream = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._stream.do_handshake()

    def cut(self) -> None:
        """From another thread: whoever waits for the host's bytes sees their end."""
        if self._stream is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._stream, socket.SHUT_RDWR)


def _body(answer: http.client.HTTPResponse, connection: _Pinned, most_bytes: int, deadline: float) -> bytes:
    got = bytearray()
    while len(got) <= most_bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
        piece = answer.read1(1 << 16)
        if not piece and time.monotonic() >= deadline:
            # Perhaps our own cut, and no end of the picture.
            raise TimeoutError
        if not piece:
            return bytes(got)
        got += piece
    raise refuse(f"the image has more than {most_bytes} bytes: send a smaller one")
