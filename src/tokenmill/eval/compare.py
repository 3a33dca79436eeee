"""How far one served model is from another on a text: KL divergence, top-1 agreement and both perplexities.

Both sides are seen through `Engine.score` alone, one after the other, so that weights of any format and KV caches of
any kind are measured as they are served, and two models need not fit into memory at once: the first side's
log-probabilities wait in a file without a name. Attention reads what the cache stored, so a quantized cache counts
although every window is one prompt.

KL is of the other side from the reference, the mean over all positions, in nats. S tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.engine.contract import Engine
from tokenmill.errors import CapacityError, ConfigError, RequestError
from tokenmill.types import Request, Sampling, Stop, Want

Floats = NDArray[np.float32]
Windows = Sequence[tuple[int, ...]]
Progress = Callable[[int, int], None]
CHUNK_TOKENS = 256
SPARE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Comparison:
    """kl: of the other side from the reference; top1: how often both prefer one token; perplexities of each."""

    kl: float
    top1: float
    perplexity_reference: float
    perplexity: float
    tokens: int

    def facts(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Sums:
    kl: float = 0.0
    same: int = 0
    nll: tuple[float, float] = (0.0, 0.0)
    tokens: int = 0
    scored: int = 0


@dataclass(slots=True)
class Reference:
    """Log-probabilities of the reference over all windows, [tokens, V] fp32 in a file that ends with this object."""

    windows: Windows
    rows_TV: Floats
    sums: _Sums = field(default_factory=_Sums)


def cut(ids: Sequence[int], window: int, most: int) -> list[tuple[int, ...]]:
    """Windows of `window` tokens, the last one of at least 2, of the first `most` tokens."""
    if window < 2:
        raise ConfigError(f"--window {window} has nothing to predict; use 2 or more")
    kept = tuple(ids[:most])
    windows = [kept[start : start + window] for start in range(0, len(kept), window)]
    found = [w for w in windows if len(w) >= 2]
    if not found:
        raise ConfigError(f"the text has {len(ids)} tokens; a comparison needs at least 2")
    return found


async def read_reference(engine: Engine, windows: Windows, progress: Progress = lambda done, total: None) -> Reference:
    """The reference's side, kept for `compare`. CapacityError where there is no room on the disk of temporary files."""
    rows: Floats | None = None
    total, at = sum(len(w) for w in windows), 0
    for number, window in enumerate(windows):
        made = log_probs(await logits(engine, window, f"reference-{number}"))
        rows = _file(total, made.shape[1]) if rows is None else rows
        rows[at : at + len(window)] = made
        at += len(window)
        progress(number + 1, len(windows))
    assert rows is not None
    return Reference(windows, rows)


def _file(tokens: int, vocab: int) -> Floats:
    need = tokens * vocab * 4
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if need + SPARE_BYTES > free:
        raise CapacityError(
            f"{tokens} tokens of {vocab} log-probabilities take {need / 2**30:.1f} GiB of temporary space and "
            f"{free / 2**30:.1f} GiB are free: use a smaller --max-tokens, or point TMPDIR to a larger disk"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(tokens, vocab))  # the mapping outlives its file


async def compare(engine: Engine, reference: Reference, progress: Progress = lambda done, total: None) -> Comparison:
    """The other side against the reference. ConfigError where their vocabularies differ."""
    sums, at = _Sums(), 0
    for number, window in enumerate(reference.windows):
        other_SV = await logits(engine, window, f"compare-{number}")
        _add(sums, reference.rows_TV[at : at + len(window)], other_SV, window)
        at += len(window)
        progress(number + 1, len(reference.windows))
    nll_reference, nll = sums.nll
    return Comparison(
        sums.kl / sums.tokens, sums.same / sums.tokens,
        math.exp(nll_reference / sums.scored), math.exp(nll / sums.scored), sums.tokens,
    )  # fmt: skip


def _add(sums: _Sums, reference_SV: Floats, other_SV: Floats, window: tuple[int, ...]) -> None:
    if reference_SV.shape != other_SV.shape:
        raise ConfigError(
            f"the models have vocabularies of {reference_SV.shape[1]} and {other_SV.shape[1]}: only models of one "
            "tokenizer can be compared"
        )
    for start in range(0, len(window), CHUNK_TOKENS):
        p, q = (x[start : start + CHUNK_TOKENS].astype(np.float64) for x in (reference_SV, log_probs(other_SV)))
        following = np.array(window[start + 1 : start + CHUNK_TOKENS + 1])
        rows = np.arange(len(following))
        sums.kl += float((np.exp(p) * (p - q)).sum())
        sums.same += int((p.argmax(1) == q.argmax(1)).sum())
        sums.nll = sums.nll[0] - float(p[rows, following].sum()), sums.nll[1] - float(q[rows, following].sum())
        sums.scored += len(following)
    sums.tokens += len(window)


async def logits(engine: Engine, ids: tuple[int, ...], request_id: str) -> Floats:
    """[S, V] of a window."""
    output = await engine.score(
        Request(
            request_id, ids, sampling=Sampling(temperature=0.0), stop=Stop(max_new_tokens=0), want=Want.LOGITS
        )
    )
    raw = output.arrays.get("logits")
    if output.error is not None or raw is None:
        raise RequestError(output.error or "the engine gave no logits", 500)
    found = np.frombuffer(raw.data, raw.dtype).reshape(raw.shape).astype(np.float32, copy=False)
    if len(found) != len(ids) or not bool(np.isfinite(found).all()):
        raise RequestError(f"the engine's logits of {len(ids)} tokens are {found.shape} or not finite", 500)
    return found


def log_probs(logits_SV: Floats) -> Floats:
    shifted: Floats = logits_SV - logits_SV.max(1, keepdims=True)
    sums: Floats = np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted - sums
