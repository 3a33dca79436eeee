"""A port for a server that is about to be started."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

from tokenmill.errors import ConfigError

# Below the ports that kernels hand out by themselves: one of those may go to any connection of any program in the
# seconds until the server takes it. LMDeploy's 23333 is left out.
RANGE = range(24_000, 32_000)
TRIES = 100


def free_port() -> int:
    """A loopback port that nobody holds now. Raises ConfigError where there is none."""
    for port in random.SystemRandom().sample(RANGE, TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ConfigError(f"found no free port among {TRIES} from {RANGE.start} to {RANGE.stop - 1}; name one")
