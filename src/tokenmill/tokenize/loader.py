"""Which tokenizer a folder gets: tokenizer.json where there is one, tokenizer.model or *.tiktoken otherwise."""

from __future__ import annotations

from pathlib import Path

from tokenmill.errors import FormatError
from tokenmill.tokenize import hf, spm, tiktoken
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.tokenizer import Tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises FormatError that says which files were looked for."""
    folder = TextFolder.read(Path(path))
    if (folder.path / "tokenizer.json").is_file():
        return hf.read(folder)
    if (folder.path / "tokenizer.model").is_file():
        return spm.read(folder)
    if any(folder.path.glob("*.tiktoken")):
        return tiktoken.read(folder)
    raise FormatError(f"{folder.path.name} has no tokenizer: no tokenizer.json, tokenizer.model or *.tiktoken")
