"""The command line: a table from verb to module. A module is imported when its verb is run, so that help comes at once.

A verb's module has `add_arguments(parser)` and `run(args) -> int` (the exit code). Errors meant for a user end as one
line on stderr, `error: ...`, with the error's exit code; Ctrl-C ends with 130; a reader that went away (`| head`) with
0; a defect with 70, and TOKENMILL_LOG_LEVEL=DEBUG shows where. Nothing here imports torch.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from tokenmill import __version__
from tokenmill.errors import TokenmillError

if TYPE_CHECKING:
    import argparse

CTRL_C = 128 + signal.SIGINT
USAGE_ERROR = 2
DEFECT = 70


@dataclass(frozen=True, slots=True)
class Verb:
    """One command. `module` is below tokenmill.cli."""

    module: str
    help: str


@dataclass(frozen=True, slots=True)
class Group:
    """Commands behind one word: `tokenmill serve api_server`."""

    help: str
    verbs: dict[str, Verb] = field(default_factory=dict)


Table = dict[str, "Verb | Group"]

_SERVE = Group(
    "servers and their clients",
    {
        "api_server": Verb("serve_api_server", "an OpenAI-compatible HTTP server"),
        "api_client": Verb("serve_api_client", "chat in the terminal with a running server"),
        "gradio": Verb("serve_gradio", "a web page to chat with a model or a server"),
        "proxy": Verb("serve_proxy", "one address before many servers"),
    },
)
_LITE = Group(
    "quantize a model",
    {
        "auto_awq": Verb("lite_auto_awq", "4-bit weights: AWQ's scales, then GPTQ"),
        "auto_gptq": Verb("lite_auto_gptq", "2-, 3-, 4- or 8-bit weights by GPTQ"),
        "smooth_quant": Verb("lite_smooth_quant", "8-bit weights and activations, int8 or fp8"),
        "blocked_fp8": Verb("lite_blocked_fp8", "fp8 weights with a scale per block"),
        "advise": Verb("lite_advise", "which form to serve here: measured, with reasons"),
        "calibrate": Verb("lite_calibrate", "activation statistics in LMDeploy's files"),
        "kv_qparams": Verb("lite_kv_qparams", "scales for the int8 KV cache of LMDeploy's first workspaces"),
    },
)
_CHECK = Group(
    "look at this machine or at a model",
    {
        "env": Verb("check_env", "versions, devices and memory of this machine"),
        "api": Verb("check_api", "whether a server keeps the APIs' promises"),
        "parity": Verb("check_parity", "compare a model with transformers, layer by layer"),
    },
)
_BENCH = Group(
    "measure",
    {
        "engine": Verb("bench_engine", "tokens per second of the engine, without HTTP"),
        "serve": Verb("bench_serve", "latency and throughput of a running server"),
        "host": Verb("bench_host", "microseconds of planning per step, without a model"),
        "startup": Verb("bench_startup", "seconds from process start to the first token, by phase"),
        "kernels": Verb("bench_kernels", "every GPU kernel against its floor and against torch"),
    },
)
_EVAL = Group(
    "quality of a model",
    {
        "ppl": Verb("eval_ppl", "perplexity on a text file"),
        "compare": Verb("eval_compare", "two models on one text: KL, top-1 agreement, perplexities"),
        "demo": Verb("eval_demo", "the held-out sets of the built-in model"),
    },
)
TABLE: Table = {
    "chat": Verb("chat", "chat with a model in the terminal"),
    "serve": _SERVE,
    "lite": _LITE,
    "plan": Verb("plan", "what fits into memory, from config.json alone"),
    "demo": Verb("demo", "the built-in model from end to end"),
    "check": _CHECK,
    "check_env": Verb("check_env", "same as check env"),
    "list": Verb("list_models", "names of chat templates and model families"),
    "eval": _EVAL,
    "bench": _BENCH,
    "convert-weights": Verb("convert_weights", "change a checkpoint's quantized format without loss"),
    "convert": Verb("convert", "make a workspace of LMDeploy's first generation"),
    "verify": Verb("verify", "check a checkpoint folder against its manifest"),
    "make-tiny": Verb("make_tiny", "write a tiny random checkpoint, for tests"),
}


def describe(table: Table | dict[str, Verb], prog: str) -> str:
    """The help text of a table of verbs."""
    lines = [f"usage: {prog} COMMAND ... (each has its own --help)", ""]
    for name, entry in table.items():
        lines.append(f"  {name:<16} {entry.help}")
    if prog == "tokenmill":
        lines += ["", "  -v, --version    the version"]
    return "\n".join(lines)


def find(table: Table | dict[str, Verb], word: str) -> Verb | Group | None:
    """The entry called `word`, with dashes or underscores."""
    plain = word.replace("-", "_")
    return next((entry for name, entry in table.items() if name.replace("-", "_") == plain), None)


def parse(verb: Verb, name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb. A module may put old forms into today's by `rewrite(argv) -> argv`."""
    from tokenmill.cli.parser import Parser

    module = import_module(f"tokenmill.cli.{verb.module}")
    parser = Parser(prog=name, description=module.__doc__)
    module.add_arguments(parser)
    words = list(argv)
    return parser.parse_args(module.rewrite(words) if hasattr(module, "rewrite") else words)


def run_verb(verb: Verb, name: str, argv: Sequence[str]) -> int:
    return int(import_module(f"tokenmill.cli.{verb.module}").run(parse(verb, name, argv)))


def dispatch(argv: Sequence[str], table: Table | dict[str, Verb] = TABLE, prog: str = "tokenmill") -> int:
    """Walks the table. No word, or a request for help, prints the table's help and is no error."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(describe(table, prog))
        return 0
    if argv[0] in ("-v", "--version") and table is TABLE:
        print(f"tokenmill {__version__}")
        return 0
    entry = find(table, argv[0])
    if entry is None:
        known = ", ".join(table)
        print(f"error: {prog} has no command {argv[0]!r}; it has {known}", file=sys.stderr)
        return USAGE_ERROR
    name = f"{prog} {argv[0]}"
    if isinstance(entry, Group):
        return dispatch(argv[1:], entry.verbs, name)
    return run_verb(entry, name, argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """The `tokenmill` command. Returns its exit code."""
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except TokenmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return CTRL_C
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        sys.stdout = None
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: one line to the user, the rest to the log
        return defect(error)


def defect(error: Exception) -> int:
    """Says that we are at fault, and how to see more."""
    from tokenmill import log

    log.configure().debug("where it happened", exc_info=error)
    print(f"error: a defect of Tokenmill: {log.safe(f'{type(error).__name__}: {error}')} "
          "(please report it; TOKENMILL_LOG_LEVEL=DEBUG shows where)", file=sys.stderr)  # fmt: skip
    return DEFECT
