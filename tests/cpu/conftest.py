"""What several server tests share. A test file that needs another `model` or `client` has fixtures of its own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.support.echo import EchoModel, echo_text_engine
from tests.support.http_server import serving


@pytest.fixture(scope="module")
def model() -> EchoModel:
    """A real session over a scripted engine; answers with the last user message."""
    return echo_text_engine()


@pytest.fixture(scope="module")
def client(model: EchoModel) -> Iterator[httpx.Client]:
    """A client of a live server on `model`."""
    with serving(model) as (_, http):
        yield http
