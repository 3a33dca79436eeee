"""What was decided at start, in a few lines: which engine runs where, and what its memory holds."""

from __future__ import annotations

import sys
from typing import Any

MIB = 1 << 20


def lines(name: str, about: dict[str, Any]) -> list[str]:
    """The memory plan of a started model; empty where its engine tells nothing (a test's echo)."""
    if "weights_bytes" not in about:
        return []
    fits = ", ".join(f"{count} of {tokens} tokens" for tokens, count in about["sequences"].items())
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in about["phases_s"].items())
    threads = f", {about['threads']} thread(s)" if about["device"] == "cpu" else ""
    rows = {
        "model": f"{name}: {about['family']}, {about['dtype']} on {about['device_name']}{threads}, tp {about['tp']}",
        "weights": size(about["weights_bytes"]),
        "KV cache": f"{size(about['kv_bytes'])} ({about['kv']}): {about['num_blocks']} blocks of "
        f"{about['block_tokens']} tokens, {about['tokens']} tokens of {about['token_bytes']} bytes",
        "workspace": size(about["workspace_bytes"]),
        "limits": f"{about['max_model_tokens']} tokens a sequence, {about['max_rows']} sequences and "
        f"{about['max_step_tokens']} tokens a step",
        "sequences": f"{fits} at once",
        "start": phases,
    }
    return [f"{label:<10} {text}" for label, text in rows.items()]


def size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / MIB:.1f} MiB"


def tell(name: str, about: dict[str, Any]) -> None:
    """To a person on stderr, so that pipes get answers only."""
    for line in lines(name, about):
        print(line, file=sys.stderr)
