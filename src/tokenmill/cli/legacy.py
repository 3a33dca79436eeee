"""What three generations of LMDeploy took and we do not: refused, ignored or renamed, each with one line on stderr.

A flag that would change answers and is not served ends the program with 2 (`Refuse`); one that means nothing any more
is accepted and says so once (`Ignore`); an old name works and says the new one (`Store`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.cli.parser import Parser, boolean


@dataclass(frozen=True, slots=True)
class Later:
    """A flag that is not served, but for the values that change nothing. `many`: it takes several values."""

    reason: str
    harmless: tuple[str, ...] = ()
    many: bool = False


LATER: dict[str, Later] = {
    "--adapters": Later("LoRA adapters are not served yet", many=True),
    "--speculative-algorithm": Later("speculative decoding is not served yet", ("none",)),
    "--speculative-draft-model": Later("speculative decoding is not served yet"),
    "--speculative-num-draft-tokens": Later("speculative decoding is not served yet", ("0", "1")),
    "--dp": Later("several replicas are not served yet: start several servers", ("1",)),
    "--ep": Later("expert parallelism is not served yet", ("1",)),
    "--cp": Later("context parallelism is not served yet", ("1",)),
    "--nnodes": Later("several machines are not served yet", ("1",)),
    "--node-rank": Later("several machines are not served yet", ("0",)),
    "--role": Later("prefill and decode on separate servers are not served yet", ("Hybrid",)),
    "--dllm-block-length": Later("diffusion models are not served"),
    "--dllm-denoising-steps": Later("diffusion models are not served"),
}
IGNORED: dict[str, str] = {
    "--communicator": "chosen by the device",
    "--num-tokens-per-iter": "use --max-prefill-token-num",
    "--max-prefill-iters": "use --max-prefill-token-num",
    "--cache-chunk-size": "the cache is allocated once",
    "--migration-backend": "there is one server role",
    "--distributed-executor-backend": "ranks are processes",
    "--kernel-block-size": "chosen by the kernels",
    "--vision-max-batch-size": "images are encoded in batches of the encoder's own",
    "--prefix-cache-state-budget": "for hybrid models, which are not served",
    "--prefix-cache-decode-state-interval": "for hybrid models, which are not served",
    "--logprobs-mode": "log-probabilities are always of the raw distribution",
    "--dllm-unmasking-strategy": "for diffusion models, which are not served",
    "--dllm-confidence-threshold": "for diffusion models, which are not served",
}
IGNORED_SWITCHES: dict[str, str] = {
    "--enable-microbatch": "steps overlap by themselves",
    "--enable-eplb": "for expert parallelism",
    "--enable-return-routed-experts": "for mixtures of experts",
}
# Names that still work, with the one to use now.
RENAMED = {
    "--instance-num": "--max-batch-size",
    "--async": "--overlap",
    "--disable-vision-encoder": "--language-model-only",
    "--max-session-len": "--session-len",
}


def note(text: str) -> None:
    """One line to a person, never into a pipe of results."""
    print(f"note: {text}", file=sys.stderr)


class Store(argparse.Action):
    """Stores the value and says what to write instead of an old name. Objects are laid over earlier ones."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string in RENAMED:
            note(f"{option_string} is now {RENAMED[option_string]}")
        before = getattr(namespace, self.dest, None)
        if isinstance(values, dict) and isinstance(before, dict):
            values = laid_over(before, values)
        setattr(namespace, self.dest, values)


class Ignore(argparse.Action):
    """Takes a flag without effect and says so once. `const` is the reason."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not getattr(namespace, self.dest, None):
            note(f"{self.option_strings[0]} has no effect: {self.const}")
        setattr(namespace, self.dest, True)


class Refuse(argparse.Action):
    """Ends with 2 for a value that would need what is not served. `const` is the `Later`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        later: Later = self.const
        typed = values if isinstance(values, list) else [values]
        if not (len(typed) == 1 and typed[0] in later.harmless):
            parser.exit(2, f"error: {self.option_strings[0]} {' '.join(typed)}: {later.reason}\n")


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key at every depth."""
    deeper = {k for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **{k: laid_over(below[k], above[k]) for k in deeper}}


def add_ignored(parser: Parser, valued: Mapping[str, str], switches: Mapping[str, str] | None = None) -> None:
    """Flags without effect, with the reason of each. `valued` take one value, `switches` may have one."""
    for name, reason in valued.items():
        parser.add_argument(name, action=Ignore, const=reason, dest=f"ignored{name}", help=argparse.SUPPRESS)
    for name, reason in (switches or {}).items():
        parser.switches.add(name)
        parser.add_argument(
            name, type=boolean, action=Ignore, const=reason, dest=f"ignored{name}", help=argparse.SUPPRESS
        )


def add_later(parser: Parser, flags: Mapping[str, Later]) -> None:
    """Flags that are refused, but for their harmless values."""
    for name, later in flags.items():
        many = "+" if later.many else None
        parser.add_argument(
            name, action=Refuse, const=later, nargs=many, dest=f"later{name}", help=argparse.SUPPRESS
        )
