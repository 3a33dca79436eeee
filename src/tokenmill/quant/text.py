"""Calibration tokens: from a file of the user's, or from the documentation that every Python carries.

Nothing is downloaded. The names of public sets that LMDeploy's commands take are accepted; as those sets are not on
this machine, Python's own documentation and docstrings stand in for them, and a warning says so. Windows are drawn at
random, by seed, from the tokenized text; the windows quality is measured on come from its end, which is never drawn.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenmill.errors import ConfigError, FormatError
from tokenmill.log import get_logger, safe

NAMED = (
    "ptb", "ptb_new", "wikitext2", "c4", "c4_new", "pileval", "gsm8k", "neuralmagic_calibration", "open-platypus",
    "openwebtext",
)  # fmt: skip
OWN = "python-docs"
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".npy")
TEXT_FIELDS = ("text", "content", "sentence")
MIN_DOCSTRING = 200
_TRIPLE = re.compile(r'"""(.+?)"""', re.DOTALL)
Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Choice:
    """dataset: one of NAMED, OWN or a path. samples windows of seqlen tokens for methods, held for measuring."""

    dataset: str = OWN
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    held: int = 4

    def __post_init__(self) -> None:
        if self.samples < 0 or self.held < 0:
            raise ConfigError(f"--calib-samples {self.samples} must not be negative")
        if self.seqlen < 8:
            raise ConfigError(f"--calib-seqlen {self.seqlen} is too short: use 8 or more, 2048 is usual")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Windows of ids. seed: that drew them. digest: SHA-256 over all of them, for reports and for resuming."""

    samples: tuple[tuple[int, ...], ...]
    held: tuple[tuple[int, ...], ...]
    origin: str
    seed: int = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.samples, self.held]).encode()).hexdigest()


def calibration(choice: Choice, encode: Encode) -> Tokens:
    """The windows of a choice. ConfigError where the text is too short for one window."""
    path = Path(choice.dataset)
    if path.suffix in SUFFIXES:
        return draw(text_ids(choice.dataset, encode, None), choice, path.name)
    return draw(text_ids(choice.dataset, encode, (choice.samples + choice.held) * choice.seqlen), choice, OWN)


def text_ids(dataset: str, encode: Encode, enough: int | None) -> np.ndarray:
    """Ids of a whole file, or of at least `enough` of a text that stands in for a set."""
    path = Path(dataset)
    if path.suffix == ".npy":
        return _read_ids(path)
    if path.suffix in SUFFIXES:
        return _encode(_read_texts(path), encode, enough)
    if dataset != OWN:
        _say_instead(dataset)
    return _encode(python_text(), encode, enough)


def _say_instead(name: str) -> None:
    if name not in NAMED:
        raise ConfigError(
            f"--calib-dataset {safe(name, 80)!r} is no known set and no file; give one of {', '.join((OWN, *NAMED))}, "
            f"or a path that ends in {', '.join(SUFFIXES)}"
        )
    get_logger().warning(
        "the set %r is not on this machine and nothing is downloaded: calibrating on Python's own documentation "
        "instead; for your own kind of text give --calib-dataset FILE", name,
    )  # fmt: skip


def draw(ids: np.ndarray, choice: Choice, origin: str) -> Tokens:
    """Random windows; the last ones of the text are held out."""
    length, size = len(ids), choice.seqlen
    held = min(choice.held, max(length // size - 1, 0))
    room = length - held * size
    if choice.samples and room < size:
        raise ConfigError(
            f"{origin} has {length} tokens, too few for one window of {size}: give more text or --calib-seqlen {length}"
        )
    starts = np.random.default_rng(choice.seed).integers(0, max(room - size, 0) + 1, choice.samples)
    samples = tuple(tuple(ids[start : start + size].tolist()) for start in starts)
    kept = tuple(tuple(ids[room + i * size : room + (i + 1) * size].tolist()) for i in range(held))
    return Tokens(samples, kept, origin, choice.seed)


def _encode(texts: Iterable[str], encode: Encode, enough: int | None) -> np.ndarray:
    """Ids of texts one after another, until there are enough."""
    found: list[int] = []
    for text in texts:
        found += encode(text + "\n\n")
        if enough is not None and len(found) >= enough:
            break
    return np.array(found, dtype=np.int64)


def _read_ids(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path.name} is no array of token ids ({safe(str(error), 120)})") from error
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2):
        raise FormatError(f"{path.name} holds {ids.dtype} {ids.shape}; token ids are whole numbers in 1 or 2 axes")
    return np.asarray(ids, dtype=np.int64).reshape(-1)


def _read_texts(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FormatError(f"{path} does not exist: --calib-dataset names a file")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _field(path, number, line)


def _field(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{path.name} line {number} is not JSON: {safe(str(error), 80)}") from error
    found = value if isinstance(value, str) else None
    if isinstance(value, dict):
        found = next((value[k] for k in TEXT_FIELDS if isinstance(value.get(k), str)), None)
    if found is None:
        raise FormatError(f"{path.name} line {number} has none of the fields {', '.join(TEXT_FIELDS)}")
    return found


def _read_parquet(path: Path) -> Iterator[str]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("parquet needs pyarrow: pip install 'tokenmill[lite]', or give txt or jsonl") from error
    table = parquet.ParquetFile(path)
    column = next((name for name in TEXT_FIELDS if name in table.schema_arrow.names), None)
    if column is None:
        raise FormatError(f"{path.name} has none of the columns {', '.join(TEXT_FIELDS)}")
    for batch in table.iter_batches(columns=[column]):
        yield from (str(text) for text in batch.column(0).to_pylist() if text)


def python_text() -> Iterator[str]:
    """The language reference, then docstrings of the standard library, then its sources; the same in every run."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    yield from (topics[name] for name in sorted(topics))
    files = _library_files()
    for path in files:
        yield from _docstrings(path)
    for path in files:
        yield path.read_text("utf-8", errors="ignore")


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    return [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts)]


def _docstrings(path: Path) -> Iterator[str]:
    """Long texts between triple quotes: docstrings, usage texts, templates. Parsing would take ten times as long."""
    for found in _TRIPLE.finditer(path.read_text("utf-8", errors="ignore")):
        if len(found[1]) >= MIN_DOCSTRING:
            yield inspect.cleandoc(found[1])
