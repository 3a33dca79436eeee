"""Watches the engine: a server without one must not stay, since only a new start brings it back."""

from __future__ import annotations

import asyncio
import time

from tokenmill.errors import EngineDeadError
from tokenmill.serve.http.service import Pulse, Service

PERIOD_S = 0.5


async def until_lost(service: Service) -> EngineDeadError:
    """Returns once the engine has been dead, or silent, for longer than the options allow."""
    limits = {Pulse.DEAD: service.options.dead_engine_s, Pulse.SILENT: service.options.silent_engine_s}
    last, since_s = Pulse.GOOD, time.monotonic()
    while True:
        await asyncio.sleep(min(PERIOD_S, *limits.values()))
        pulse = await service.pulse()
        if pulse is not last:
            last, since_s = pulse, time.monotonic()
        if pulse is not Pulse.GOOD and time.monotonic() - since_s >= limits[pulse]:
            why = "is not running" if pulse is Pulse.DEAD else f"has not answered for {limits[pulse]:g} s"
            return EngineDeadError(f"the engine {why}; start the server again")
