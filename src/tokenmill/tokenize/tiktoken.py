"""`*.tiktoken` vocabularies (Qwen v1): ranks of byte strings, without the tiktoken package.

A line is a token's bytes in base64 and its rank. Two neighbours join wherever their bytes together are a token, those
of the lowest rank first: so every way to cut a token into two tokens is a merge of its rank, and the byte-pair encoder
of `tokenizers` takes the same steps. Special tokens follow the ranks and stand in no file: Qwen's are known by name.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tokenmill.errors import FormatError
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.hf import from_backend
from tokenmill.tokenize.pieces import byte_alphabet
from tokenmill.tokenize.tokenizer import Tokenizer

# Qwen's rule for cutting text into words before pairs are joined; digits stand alone.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
MAX_FILE_BYTES = 64 << 20
Ranks = dict[bytes, int]
_ALPHABET = byte_alphabet()


def read(folder: TextFolder) -> Tokenizer:
    """The tokenizer of a folder with one *.tiktoken file. Raises FormatError where the file is none."""
    files = sorted(folder.path.glob("*.tiktoken"))
    if len(files) != 1:
        raise FormatError(f"{folder.path.name} has {len(files)} tiktoken files; it must have one")
    if "qwen" not in (files[0].stem.lower(), str(folder.tokenizer_config.get("tokenizer_class")).lower()[:4]):
        raise FormatError(f"{files[0].name} is no Qwen vocabulary; how others split text stands in no file: convert it")
    ranks = read_ranks(files[0])
    names = {token: "".join(_ALPHABET[byte] for byte in token) for token in ranks}
    vocabulary = {name: ranks[token] for token, name in names.items()}
    merges = [(names[left], names[right]) for token in ranks for left, right in _joins(token, ranks)]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
    return from_backend(backend, folder)


def read_ranks(path: Path) -> Ranks:
    """Ranks by bytes, in order, without gaps. Raises FormatError that names the line."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise FormatError(f"{path.name} has {path.stat().st_size} bytes; a vocabulary has at most {MAX_FILE_BYTES}")
    ranks: Ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        token, rank = _entry(line, f"{path.name}, line {number}")
        if rank != len(ranks) or token in ranks or not token:
            raise FormatError(f"{path.name}, line {number}: rank {rank} where a new token of rank {len(ranks)} belongs")
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise FormatError(f"{path.name} has no token for byte {missing[0]}, which every text may hold")
    return ranks


def _entry(line: bytes, where: str) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except (ValueError, binascii.Error):
        raise FormatError(f"{where} is no 'base64 rank'") from None


def _joins(token: bytes, ranks: Ranks) -> list[tuple[bytes, bytes]]:
    cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in ranks and right in ranks]
