"""The workspace of LMDeploy's first generation: a folder with `triton_models/weights/config.ini` beside the weights.

    workspace/
      tokenmill-workspace.json   who made it; only such a folder is ever replaced
      triton_models/weights/     the checkpoint as it was, and config.ini, which people edit
      triton_models/tokenizer/   the tokenizer's files
      model_repository/          for a Triton Inference Server: the model `tokenmill`, by its Python backend

`make_workspace` writes one, `unfold` turns one into a configuration. Keys of config.ini keep their old meanings:
`quant_policy` 4 is an int8 KV cache, `rope_scaling_factor` from 1.0 on is dynamic NTK, `session_len` holds 8 spare
tokens, `cache_max_entry_count` above 1 is a number of blocks (of sequences in files of the engine's version 1.0).
What the caller asks for goes before what the file says.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenmill import __version__
from tokenmill.config import EngineConfig
from tokenmill.errors import ConfigError, FormatError
from tokenmill.log import get_logger

WEIGHTS = Path("triton_models") / "weights"
TOKENIZER = Path("triton_models") / "tokenizer"
MARK = "tokenmill-workspace.json"
SECTION = "llama"
SPARE_TOKENS = 8
BLOCK_TOKENS = 64
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.jinja")
REPOSITORY = Path("model_repository") / "tokenmill"
MODEL_PY = "from tokenmill.serve.triton.model import TritonPythonModel\n\n__all__ = [\"TritonPythonModel\"]\n"
CONFIG_PBTXT = """\
name: "tokenmill"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
parameters { key: "model" value: { string_value: "../.." } }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
NAME = re.compile(r"[\w][\w.-]{0,127}")


def is_workspace(path: str) -> bool:
    return (Path(path).expanduser() / WEIGHTS / "config.ini").is_file()


def read_ini(path: Path) -> dict[str, str]:
    """The one section of a config.ini. Raises FormatError where it is none."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise FormatError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from None
    sections = parser.sections()
    if SECTION not in sections and len(sections) != 1:
        raise FormatError(f"{path.name} has the sections {', '.join(sections) or 'none'}; it must have [{SECTION}]")
    return dict(parser[SECTION if SECTION in sections else sections[0]])


def unfold(config: EngineConfig, name: str | None = None) -> tuple[EngineConfig, str | None]:
    """The configuration and name of a workspace; both as they were for any other path."""
    path = config.model.path
    if not is_workspace(path):
        return config, name
    folder = Path(path).expanduser() / WEIGHTS
    said = read_ini(folder / "config.ini")
    if not (folder / "config.json").is_file():
        raise FormatError(f"{path} holds raw weights of an old converter; make it again: tokenmill convert NAME FOLDER")
    get_logger().info("model_source: workspace")
    changed = overlay(config, settings(said))
    return replace(changed, model=replace(changed.model, path=str(folder))), name or said.get("model_name")


def overlay(config: EngineConfig, found: dict[str, Any]) -> EngineConfig:
    """`found` (by `part.field`) where the configuration says no more than its defaults."""
    default = EngineConfig()
    for key, value in found.items():
        part, field = key.split(".")
        if getattr(getattr(config, part), field) == getattr(getattr(default, part), field):
            config = replace(config, **{part: replace(getattr(config, part), **{field: value})})
    return config


def settings(said: dict[str, str]) -> dict[str, Any]:
    """What config.ini says, by field of EngineConfig, with the meanings of its time."""
    read = Reader(said)
    session, rows = read.whole("session_len"), read.whole("max_batch_size")
    if session is not None and session - SPARE_TOKENS == read.whole("max_position_embeddings"):
        session -= SPARE_TOKENS
    scaling, logn = read.number("rope_scaling_factor") or 0.0, read.whole("use_logn_attn")
    found: dict[str, Any] = {
        "model.max_model_tokens": session,
        "model.rope_scaling_factor": scaling if scaling >= 1.0 else None,
        "model.use_logn_attn": None if logn is None else bool(logn),
        "cache.kv": read.kv(),
        "cache.block_tokens": read.whole("cache_block_seq_len"),
        "scheduler.max_rows": rows,
        "scheduler.max_step_tokens": step_tokens(read.whole("max_context_token_num"), session, rows),
        "parallel.tp": read.whole("tensor_para_size"),
        **cache_size(read, session),
    }
    return {key: value for key, value in found.items() if value is not None}


def step_tokens(asked: int | None, session: int | None, rows: int | None) -> int | None:
    """A small `max_context_token_num` counts whole sessions."""
    if asked is None or session is None:
        return asked
    return asked * session if asked <= (rows or 1) else asked


def cache_size(read: Reader, session: int | None) -> dict[str, Any]:
    """A share of the memory, or above 1 a number of blocks; of sequences in the engine's version 1.0."""
    count = read.number("cache_max_entry_count")
    if count is None or count <= 1:
        return {"cache.memory_frac": count if count and count < 1 else None}
    if "use_dynamic_ntk" in read.said and "cache_block_seq_len" not in read.said and session is not None:
        blocks_each = -(-session // BLOCK_TOKENS)
        return {"cache.num_blocks": int(count) * blocks_each, "cache.block_tokens": BLOCK_TOKENS}
    return {"cache.num_blocks": int(count)}


class Reader:
    """Values of a config.ini. Raises FormatError that names the key."""

    def __init__(self, said: dict[str, str]):
        self.said = said

    def whole(self, key: str) -> int | None:
        value = self._read(key, int, "a whole number")
        return None if value is None else int(value)

    def number(self, key: str) -> float | None:
        return self._read(key, float, "a number")

    def kv(self) -> str | None:
        policy = self.whole("quant_policy")
        kinds = {None: None, 0: None, 4: "int8", 8: "int8"}
        if policy not in kinds:
            raise FormatError(f"config.ini: quant_policy is {policy}; it must be 0, or 4 for an int8 KV cache")
        return kinds[policy]

    def _read(self, key: str, kind: Callable[[str], float], wanted: str) -> float | None:
        text = self.said.get(key)
        if text is None:
            return None
        try:
            value = kind(text)
        except ValueError:
            raise FormatError(f"config.ini: {key} is {text!r}; it must be {wanted}") from None
        if not 0 <= value < 1 << 40:
            raise FormatError(f"config.ini: {key} is {text}; it must not be negative or huge")
        return value


def ini_of(name: str, config: dict[str, Any], tp: int) -> dict[str, Any]:
    """The keys of a new config.ini for a model with this config.json."""
    heads, context = config["num_attention_heads"], config.get("max_position_embeddings", 2048)
    quantized = config.get("quantization_config") or {}
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    bias = config.get("bias", config.get("attention_bias", False))
    return {
        "model_name": name, "tensor_para_size": tp, "head_num": heads,
        "kv_head_num": config.get("num_key_value_heads", heads), "vocab_size": config["vocab_size"],
        "num_layer": config["num_hidden_layers"], "inter_size": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6), "attn_bias": int(bool(bias)),
        "start_id": config.get("bos_token_id", 1), "end_id": config.get("eos_token_id", 2),
        "session_len": context + SPARE_TOKENS, "weight_type": "int4" if quantized.get("bits") == 4 else "fp16",
        "rotary_embedding": head_dim, "rope_theta": config.get("rope_theta", 10000.0), "size_per_head": head_dim,
        "group_size": quantized.get("group_size", 0), "max_batch_size": 64, "max_context_token_num": 1,
        "step_length": 1, "cache_max_entry_count": 0.5, "cache_block_seq_len": 128, "cache_chunk_size": 1,
        "use_context_fmha": 1, "quant_policy": 0, "max_position_embeddings": context, "rope_scaling_factor": 0.0,
        "use_logn_attn": int(bool(config.get("use_logn_attn", False))),
    }  # fmt: skip


def make_workspace(name: str, source: Path, destination: Path, tp: int = 1) -> Path:
    """A workspace that serves `source` as `name`. Files are linked where the disk allows it, else copied.

    Raises ConfigError where `destination` is a folder that was not made here: it is not deleted.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"the model's name is {name!r}; letters, digits, '.', '-' and '_' can be served")
    if destination.exists() and not (destination / MARK).is_file():
        raise ConfigError(f"{destination} is there and no workspace of ours: it is kept; name another with --dst-path")
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        fill(partial, name, source, tp)
        replace_folder(destination, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def fill(folder: Path, name: str, source: Path, tp: int) -> None:
    weights, tokenizer = folder / WEIGHTS, folder / TOKENIZER
    weights.mkdir(parents=True)
    tokenizer.mkdir(parents=True)
    # Code of a checkpoint is left behind: nothing here runs it.
    # So is the config.ini of another workspace: linked, it would be written over there too.
    for file in (f for f in sorted(source.iterdir()) if f.is_file() and f.suffix != ".py" and f.name != "config.ini"):
        link(file, weights / file.name)
        if any(file.match(pattern) for pattern in TOKENIZER_FILES):
            link(file, tokenizer / file.name)
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        values = ini_of(name, config, tp)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{source / 'config.json'} lacks what a workspace says: {error!r}") from None
    parser = configparser.ConfigParser(interpolation=None)
    parser[SECTION] = {key: str(value) for key, value in values.items()}
    with (weights / "config.ini").open("w", encoding="utf-8") as out:
        parser.write(out)
    (folder / REPOSITORY / "1").mkdir(parents=True)
    (folder / REPOSITORY / "config.pbtxt").write_text(CONFIG_PBTXT, encoding="utf-8")
    (folder / REPOSITORY / "1" / "model.py").write_text(MODEL_PY, encoding="utf-8")
    (folder / MARK).write_text(json.dumps({"tokenmill": __version__, "name": name}) + "\n", encoding="utf-8")


def link(source: Path, destination: Path) -> None:
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def replace_folder(destination: Path, new: Path) -> None:
    """`new` takes the place of `destination`, which is whole at every moment but one rename."""
    old = destination.with_name(destination.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
