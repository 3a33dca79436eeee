"""`tokenmill chat` with an echo of bytes for a model: `python -m tests.support.echo_chat chat turbomind ./workspace`.

It says the question back, one token in `ECHO_DELAY_S` seconds.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tests.support.echo import EchoModel, echo_text_engine
from tokenmill.cli import chat
from tokenmill.cli.main import main
from tokenmill.cli.options import engine_config


async def open_echo(args: Any, path: str) -> EchoModel:
    engine_config(args, path)
    return echo_text_engine(name=path, delay_s=float(os.environ.get("ECHO_DELAY_S", "0")))


if __name__ == "__main__":
    chat.open_engine = open_echo  # type: ignore[assignment]
    sys.exit(main(sys.argv[1:]))
