"""Modules of a room by name: how a family, a format or a dialect is found by its file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from tokenmill.errors import ConfigError


def names(package: str) -> list[str]:
    """Module names in `package`, sorted; those that begin with an underscore are the room's own."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def folders(package: str) -> list[str]:
    """Packages in `package`, sorted."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if m.ispkg)


def load(package: str, name: str) -> ModuleType:
    """The module `name` of `package`. Raises ConfigError that lists what there is."""
    known = names(package)
    if name not in known:
        raise ConfigError(f"{package.rsplit('.', 1)[-1]} has no {name!r}; it has {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
