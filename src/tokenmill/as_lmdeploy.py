"""`python -m tokenmill.as_lmdeploy SCRIPT ARGS...`: runs a program that imports `lmdeploy` on Tokenmill, unmodified."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenmill.api.facade import install
from tokenmill.errors import TokenmillError

USAGE = "usage: python -m tokenmill.as_lmdeploy SCRIPT [ARGS...]"
USAGE_ERROR = 2


def main(argv: Sequence[str]) -> int:
    """The exit code, where the script does not end the program itself."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{USAGE}\n")
        return 0 if argv else USAGE_ERROR
    script = Path(argv[0])
    if not script.is_file():
        sys.stderr.write(f"error: there is no script {argv[0]}; {USAGE}\n")
        return USAGE_ERROR
    install()
    sys.argv = list(argv)
    # As `python SCRIPT` has it: modules beside the script can be imported.
    sys.path[0] = str(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except TokenmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
