"""Engine flags, generated from the fields of `config.EngineConfig`, under LMDeploy's names and our own.

Every field of the nested records is a flag: `ENGINE_FLAGS` says under which names, with which help, and how a text
becomes the field's value; the default is the field's own. What LMDeploy took beside them lies in `legacy.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.cli.legacy import IGNORED, IGNORED_SWITCHES, LATER, Store, add_ignored, add_later, note
from tokenmill.cli.parser import Parser, boolean
from tokenmill.config import DEVICES, DTYPES, EngineConfig, validate

# LMDeploy's names and numbers of KV cache formats; None: known there, not here.
QUANT_POLICY: dict[str, str | None] = {
    "0": "auto", "none": "auto", "auto": "auto",
    "4": "int4", "int4": "int4", "int4-plain": "int4-plain",
    "8": "int8", "int8": "int8",
    "16": "fp8", "fp8": "fp8", "fp8_e4m3": "fp8",
    "17": None, "fp8_e5m2": None, "42": None, "turbo_quant": None,
}  # fmt: skip
MODEL_FORMATS = ("hf", "awq", "gptq", "compressed-tensors", "fp8", "smooth_quant", "mxfp4")
BACKENDS = {"turbomind": "native", "pytorch": "native", "torch": "native", "native": "native",
            "transformers": "transformers"}  # fmt: skip


def kv_kind(text: str) -> str:
    kind = QUANT_POLICY.get(text.lower(), "")
    if kind is None:
        raise argparse.ArgumentTypeError(f"{text} is not served; int8 (8), int4 (4) and fp8 (16) are")
    if not kind:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(QUANT_POLICY)}")
    return kind


def weight_format(text: str) -> str | None:
    """None lets the checkpoint say it; `hf` is LMDeploy's word for that."""
    if text == "llama":
        raise argparse.ArgumentTypeError("'llama' (consolidated.*.pth) is not read: convert it to Hugging Face's form")
    if text not in MODEL_FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(MODEL_FORMATS)}")
    return None if text == "hf" else text


def backend(text: str) -> str:
    if text not in BACKENDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(BACKENDS)}")
    return BACKENDS[text]


def num_bytes(text: str) -> int:
    """`24GiB`, `24GB`, `512M` or a plain number of bytes; GB and G are taken as powers of 1024, as users mean them."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    plain = text.strip().upper().removesuffix("B").removesuffix("I")
    shift = units.get(plain[-1:], 0)
    try:
        value = float(plain[:-1] if shift else plain)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 24GiB") from None
    if not 0 <= value < 1 << 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 24GiB")
    return int(value * (1 << shift))


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


@dataclass(frozen=True, slots=True)
class Flag:
    """One field as a flag. `names`: the first is shown, all are taken. `many`: takes several values."""

    field: str
    names: tuple[str, ...]
    help: str
    convert: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    many: bool = False

    @property
    def dest(self) -> str:
        return "engine_" + self.field.replace(".", "_")


ENGINE_FLAGS: tuple[Flag, ...] = (
    Flag("model.dtype", ("--dtype",), "type of weights and arithmetic", choices=DTYPES),
    Flag("model.weight_format", ("--model-format",), "layout of the weights; detected by default", weight_format),
    Flag("model.backend", ("--backend",), "LMDeploy's turbomind and pytorch both mean the native engine", backend),
    Flag("model.revision", ("--revision",), "branch, tag or commit on the hub"),
    Flag("model.download_dir", ("--download-dir",), "where models from the hub are kept"),
    Flag("model.trust_remote_code", ("--trust-remote-code",), "let a folder's own Python run; natively served "
         "families never need it", boolean),
    Flag("model.language_only", ("--language-model-only", "--disable-vision-encoder"), "leave the vision part out",
         boolean),
    Flag("model.max_model_tokens", ("--session-len", "--max-model-tokens", "--max-session-len"), "most tokens of a "
         "sequence", positive),
    Flag("model.rope_scaling_factor", ("--rope-scaling-factor",), "dynamic NTK factor; 0 is the model's own", float),
    Flag("model.use_logn_attn", ("--use-logn-attn",), "scale attention by the logarithm of the position", boolean),
    Flag("model.hf_overrides", ("--hf-overrides",), "JSON object laid over config.json", json_object),
    Flag("cache.kv", ("--quant-policy", "--kv"), "KV cache format: 0/auto, 8/int8, 4/int4, int4-plain, 16/fp8",
         kv_kind),
    Flag("cache.block_tokens", ("--cache-block-seq-len", "--block-tokens"), "tokens of a KV block", positive),
    Flag("cache.memory_frac", ("--cache-max-entry-count", "--kv-memory-frac"), "share of the memory left free by "
         "the weights that the KV cache takes", float),
    Flag("cache.memory_bytes", ("--kv-memory",), "size of the KV cache, such as 8GiB, instead of a share", num_bytes),
    Flag("cache.num_blocks", ("--num-blocks",), "number of KV blocks, instead of a share", positive),
    Flag("cache.image_tiles", ("--image-tiles",), "tiles of images that are kept as vectors", positive),
    Flag("cache.prefix_caching", ("--enable-prefix-caching",), "reuse the KV cache of common beginnings", boolean),
    Flag("scheduler.max_rows", ("--max-batch-size", "--max-rows", "--instance-num"), "most sequences in one step",
         positive),
    Flag("scheduler.max_step_tokens", ("--max-prefill-token-num", "--max-step-tokens"), "most tokens in one step",
         positive),
    Flag("scheduler.max_queue", ("--max-queue",), "most requests that wait; more get 429", positive),
    Flag("scheduler.itl_target_ms", ("--itl-target-ms",), "most milliseconds a step may take while others wait for "
         "their next token", float),
    Flag("scheduler.overlap", ("--overlap", "--async"), "plan the next step while one runs", boolean),
    Flag("parallel.tp", ("--tp",), "GPUs that share one model", positive),
    Flag("parallel.devices", ("--devices",), "indices of these GPUs", int, many=True),
    Flag("parallel.init_method", ("--dist-init-addr",), "where the ranks meet"),
    Flag("kernels.device", ("--device",), "where the arithmetic runs", choices=DEVICES),
    Flag("kernels.eager", ("--eager-mode",), "no CUDA graphs", boolean),
    Flag("kernels.capture_rows", ("--cudagraph-capture-batch-sizes",), "batch sizes with a CUDA graph of their own",
         positive, many=True),
    Flag("kernels.threads", ("--threads",), "threads of the CPU backend", positive),
    Flag("media.domains", ("--allowed-media-domains",), "hosts that images may be fetched from", many=True),
    Flag("media.folder", ("--allowed-local-media-path",), "a folder that image files may be read from"),
)  # fmt: skip
NOT_FLAGS = ("model.path",)


def default_of(path: str) -> Any:
    part, name = path.split(".")
    return getattr(getattr(EngineConfig(), part), name)


def add_engine_flags(parser: Parser) -> None:
    """Every field of EngineConfig, what comes later, and what has no effect."""
    group = parser.add_argument_group("engine")
    for flag in ENGINE_FLAGS:
        if flag.convert is boolean:
            parser.switches.update(flag.names)
        group.add_argument(
            *flag.names,
            dest=flag.dest,
            type=flag.convert,
            choices=flag.choices,
            nargs="+" if flag.many else None,
            action=Store,
            default=None,
            metavar=None if flag.choices else flag.names[0].lstrip("-").replace("-", "_").upper(),
            help=f"{flag.help} (default: {shown(default_of(flag.field))})".replace("%", "%%"),
        )
    parser.objects.add("--hf-overrides")
    add_later(parser, LATER)
    add_ignored(parser, IGNORED, IGNORED_SWITCHES)


def shown(value: Any) -> str:
    """A default, in words where it is none."""
    if value is None:
        return "decided by model and device"
    return "none" if value in ({}, ()) else str(value)


def blocks_for_share(cache: dict[str, Any]) -> None:
    """LMDeploy took a whole number above 1 in place of the share: it was a number of blocks."""
    share = cache.get("memory_frac", 0.0)
    if share > 1 and share == int(share):
        note(f"--cache-max-entry-count {share:g} is above 1 and taken as --num-blocks {share:g}")
        cache["num_blocks"] = int(cache.pop("memory_frac"))


def engine_config(args: argparse.Namespace, path: str) -> EngineConfig:
    """The config that a parsed command line asks for, for the model at `path`."""
    changes: dict[str, dict[str, Any]] = {"model": {"path": path}}
    for flag in ENGINE_FLAGS:
        value = getattr(args, flag.dest)
        if value is not None:
            part, name = flag.field.split(".")
            changes.setdefault(part, {})[name] = tuple(value) if flag.many else value
    blocks_for_share(changes.get("cache", {}))
    if changes.get("cache", {}).get("prefix_caching"):
        note("prefix caching is on by default; --enable-prefix-caching false turns it off")
    config = EngineConfig()
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in changes.items()}
    return validate(dataclasses.replace(config, **parts))
