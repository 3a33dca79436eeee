"""Grammars of a served model: what a compiler must know of its vocabulary, and the check before a request is queued.

The check compiles once beside the event loop, so that a bad grammar is answered 400 and a slow one is given up after
seconds; the engine's process compiles again with a compiler of its own, as no object crosses.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tokenmill.errors import RequestError
from tokenmill.grammar.compiler import Compiler, TokenTable
from tokenmill.tokenize.choose import TURN_ENDS
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.types import GrammarSpec

# Grammars take hundredths of a second of a core; the rest is for a machine whose cores are wanted by others.
COMPILE_LIMIT_S = 5.0


def token_table(tokenizer: Tokenizer, eos_ids: tuple[int, ...], size: int) -> TokenTable:
    """Every token that may end an answer of this vocabulary ends a constrained one: which will, the request says."""
    vocabulary = tokenizer.vocabulary
    own = (vocabulary.eos_id, *(vocabulary.token_id(text) for text in TURN_ENDS))
    ends = dict.fromkeys((*eos_ids, *(token for token in own if token is not None)))
    special = {token.text: token.id for token in vocabulary.added.values() if token.special and token.id < size}
    return TokenTable(
        size=size,
        token_bytes=vocabulary.token_bytes,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        special=special,
        end_ids=tuple(token for token in ends if 0 <= token < size),
    )


class GrammarCheck:
    """Compiles a request's grammar to see whether it can be; the result is thrown away."""

    def __init__(self, compiler: Compiler, limit_s: float = COMPILE_LIMIT_S) -> None:
        self._compiler = compiler
        self._limit_s = limit_s
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tokenmill-grammar")

    async def check(self, spec: GrammarSpec) -> None:
        """Raises RequestError (400) where the grammar is wrong or takes too long."""
        loop = asyncio.get_running_loop()
        # The first grammar waits for the token tree, which is not its fault.
        await loop.run_in_executor(self._pool, self._compiler.prepare)
        try:
            await asyncio.wait_for(loop.run_in_executor(self._pool, self._compiler.compile, spec), self._limit_s)
        except TimeoutError:
            raise RequestError(
                f"the {spec.kind} did not compile within {self._limit_s:g} s; make it simpler",
                param="response_format", code="invalid_grammar",
            ) from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
