"""Small tokenizers of each kind language models have, trained on the spot with the libraries that define them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.hf import from_backend
from tokenmill.tokenize.tokenizer import Tokenizer

TEXTS = (
    "the quick brown fox jumps over the lazy dog and the watermelon", "一只狐狸 跳过了 那只懒狗 写一个故事",
    "naïve café déjà vu über",
    "def f(x):\n    return x + 1\n\n", "12 + 34 = 46, 7 - 5 = 2; 100 %", "hello hello world world  two  spaces",
    "<tag> [list] {\"key\": \"value\"}", "🙂🙃 emoji 👩‍👩‍👧 family",
) * 4  # fmt: skip
KINDS = ("byte_level", "byte_fallback", "sentencepiece")
SPECIAL = ("<s>", "</s>", "<|im_end|>")


def backend_of(kind: str) -> tokenizers.Tokenizer:
    """A `tokenizers` object: GPT-2's kind, a fallback to bytes without, and one with sentencepiece's dummy prefix."""
    made = _byte_level() if kind == "byte_level" else _fallback(prefix=kind == "sentencepiece")
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


@cache
def made(kind: str) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """The library's object and our tokenizer of it."""
    backend = backend_of(kind)
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    return backend, from_backend(backend_of(kind), TextFolder(Path(kind), {}, {}, config, {}))


def _byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def _fallback(prefix: bool) -> tokenizers.Tokenizer:
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    # Sentencepiece's mark for a space, in place before pieces are learnt, as in Llama's converted files.
    rules = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    learner.normalizer = normalizers.Sequence(rules)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    learner.train_from_iterator(TEXTS, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = tokenizers.Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = learner.normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return made
