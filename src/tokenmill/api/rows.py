"""Which rows of an answer's logits or hidden states a caller asked for, piece by piece.

Row i is what the model made of token i, from which token i + 1 is drawn. The first piece of an answer brings the
prompt's rows and so the row its first token came from; each later step brings one. `all` is every row of the prompt and
of the answer but its last token; `generation` one row for every token of the answer. Rows of tokens that are no part of
the answer (a stop token that is not shown) are left out.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.types import Chunk, RawArray

NAMES = {"logits": "output_logits", "hidden": "output_last_hidden_state"}


class Rows:
    """State of one answer. `wanted`: all or generation, by the array's name."""

    def __init__(self, wanted: dict[str, str]) -> None:
        self._wanted = wanted
        self._first = True
        self._drawn = 0

    def cut(self, chunk: Chunk) -> Chunk:
        """The chunk with the rows that were asked for."""
        drawn, self._drawn = chunk.usage.completion_tokens - self._drawn, chunk.usage.completion_tokens
        wanted = {name: mode for name, mode in self._wanted.items() if name in chunk.arrays}
        cut = {name: self._rows(chunk.arrays[name], mode, chunk, drawn) for name, mode in wanted.items()}
        self._first = self._first and not chunk.arrays
        others = {name: array for name, array in chunk.arrays.items() if name not in cut}
        return replace(chunk, arrays={**others, **{name: array for name, array in cut.items() if array.shape[0]}})

    def _rows(self, array: RawArray, wanted: str, chunk: Chunk, drawn: int) -> RawArray:
        shown = len(chunk.token_ids)
        if self._first:
            # The prompt's rows come first; the first token's is the last of them.
            prompt = chunk.usage.prompt_tokens
            own = prompt - 1
            start, stop = (own, own + shown) if wanted == "generation" else (0, max(own + shown, prompt))
            return _slice(array, start, stop)
        # A step that ran twice brings the rows of earlier tokens once more; a stop string cuts later ones off.
        start = 0 if isinstance(chunk.stop_reason, str) else max(array.shape[0] - drawn, 0)
        return _slice(array, start, start + shown)


def _slice(array: RawArray, start: int, stop: int) -> RawArray:
    start, stop = min(start, array.shape[0]), min(stop, array.shape[0])
    width = len(array.data) // max(array.shape[0], 1)
    count = max(stop - start, 0)
    return RawArray((count, *array.shape[1:]), array.dtype, array.data[start * width : (start + count) * width])
