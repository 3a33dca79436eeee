"""`python -m tokenmill.bench.peers.child`: one peer, one job on stdin, events on stdout (contract.py).

A peer's own output goes to stderr, whoever writes it: stdout's number is taken before the peer is imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tokenmill import find
from tokenmill.bench.peers.contract import Job, Peer, pack_line
from tokenmill.bench.workload import Workload
from tokenmill.errors import ConfigError, TokenmillError

ENGINES = "tokenmill.bench.peers.engines"
Say = Callable[..., None]


def take_stdout() -> Say:
    """A function that writes an event to what was stdout."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: str, **values: Any) -> None:
        pipe.write(json.dumps({"event": event, **values}) + "\n")
        pipe.flush()

    return say


def load(peer: Peer, name: str) -> str:
    try:
        return peer.load()
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}): install it, or name its --peer-path") from error


def work(job: Job, say: Say) -> None:
    peer: Peer = find.load(ENGINES, job.engine).Peer()
    say("loaded", version=load(peer, job.engine))
    phases = peer.start(job.settings)
    try:
        if job.warm_up:
            peer.run(Workload("warm-up", job.warm_up))
        say("ready", phases=phases)
        for workload in job.workloads:
            lines = peer.run(workload)
            say("run", case=workload.name, streams=peer.streams, timelines=[pack_line(line) for line in lines])
    finally:
        peer.close()


def main() -> None:
    say = take_stdout()
    job = Job.decode(sys.stdin.readline())
    say("started")
    code = 0
    try:
        work(job, say)
    except TokenmillError as error:
        say("failed", error=str(error), kind="config")
        code = 1
    except Exception as error:  # noqa: BLE001 -- whatever a peer dies of is its line in the report
        say("failed", error=f"{type(error).__name__}: {error}"[:400], kind="defect")
        code = 1
    sys.stderr.flush()
    # Engines leave threads and processes that keep an interpreter from ending; nothing of ours is open.
    os._exit(code)


if __name__ == "__main__":
    main()
