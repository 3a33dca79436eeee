"""The network faces of a served model. Everything here speaks to an `api.contract.TextEngine`; nothing tokenizes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """Python binds this room to `tokenmill.serve` once it is imported, where LMDeploy's users find a function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from tokenmill.api.serving import serve

        return serve(*args, **options)


sys.modules[__name__].__class__ = _Room
