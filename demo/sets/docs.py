"""Plain English text: the docstrings of Python's own modules, read from the running interpreter.

Nothing of it is stored here.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from functools import lru_cache
from random import Random

from demo.sample import Sample, listed

MODULES = listed("""
    argparse array ast asyncio base64 bisect calendar cmath codecs collections configparser contextlib copy csv
    datetime decimal difflib dis email enum fileinput fnmatch fractions ftplib functools gettext glob gzip hashlib
    heapq hmac html http.client imaplib inspect io ipaddress itertools json logging mailbox math mimetypes os
    pathlib pickle pprint queue random re sched secrets shelve shlex shutil smtplib socket sqlite3 ssl statistics
    string struct subprocess tarfile tempfile textwrap threading time timeit tokenize trace traceback types typing
    unittest urllib.parse uuid warnings wave weakref xml.dom.minidom zipfile
""")
PIECE_CHARS = 500


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """Paragraphs of docstrings of at most PIECE_CHARS characters, in a fixed order, without repeats."""
    found: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # looking at a deprecated module is no use of it
        for module_name in MODULES:
            module = importlib.import_module(module_name)
            for item in (module, *(item for _, item in sorted(inspect.getmembers(module, is_documented)))):
                for text in docstrings(item):
                    found.update(dict.fromkeys(paragraphs(text)))
    return tuple(found)


def is_documented(item: object) -> bool:
    return inspect.isclass(item) or inspect.isroutine(item)


def docstrings(item: object) -> list[str]:
    """The docstring of a module, function or class, and of the class's own public methods."""
    members = [m for n, m in sorted(vars(item).items()) if not n.startswith("_")] if inspect.isclass(item) else []
    texts = [getattr(thing, "__doc__", None) for thing in (item, *members)]
    return [inspect.cleandoc(text) for text in texts if isinstance(text, str)]


def paragraphs(text: str) -> list[str]:
    parts = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    return [part[:PIECE_CHARS] for part in parts if len(part) >= 60 and ">>>" not in part and part.isascii()]


def draw(rng: Random, held: bool) -> Sample:
    """One paragraph. There is no held-out half."""
    return Sample("docs", [{"role": "document", "content": rng.choice(pieces())}], plain=True)
