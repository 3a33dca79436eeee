"""Makes a workspace of LMDeploy's first generation: `tokenmill convert NAME MODEL`, then `tokenmill chat ./workspace`.

Nothing needs one any more: `tokenmill chat MODEL` runs the same model. A workspace is served under NAME, with the
settings of its triton_models/weights/config.ini.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenmill.cli.legacy import Later, add_ignored, add_later
from tokenmill.cli.options import positive, weight_format
from tokenmill.cli.parser import Parser

IGNORED = {
    "--tokenizer-path": "the tokenizer lies in the model's folder",
    "--group-size": "the checkpoint says it",
    "--dtype": "say it when you serve the workspace",
    "--chat-template": "say it when you serve the workspace",
}
IGNORED_SWITCHES = {"--trust-remote-code": "code of a checkpoint is never run"}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name it is served under, such as internlm-chat-7b")
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub name, or demo")
    parser.add_argument("--dst-path", type=Path, default=Path("workspace"), help="where to write (default: workspace); "
                        "another workspace there is replaced, any other folder is kept")  # fmt: skip
    parser.add_argument("--tp", type=positive, default=1, help="GPUs that will share it, for config.ini")
    parser.add_argument("--model-format", type=weight_format, help=argparse.SUPPRESS)
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--download-dir", help="where models from the hub are kept")
    add_ignored(parser, IGNORED, IGNORED_SWITCHES)
    add_later(parser, {"--quant-path": Later("quantized weights apart from the model's folder are not served")})


def run(args: argparse.Namespace) -> int:
    from tokenmill.api.hub import resolve_model
    from tokenmill.api.workspace import WEIGHTS, make_workspace

    source = resolve_model(args.model, args.revision, args.download_dir)
    made = make_workspace(args.name, source, args.dst_path, args.tp)
    print(f"wrote {made}, served as {args.name}; settings: {made / WEIGHTS / 'config.ini'}")
    return 0
