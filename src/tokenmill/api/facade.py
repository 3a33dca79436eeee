"""The package `lmdeploy` for programs that import it: modules made of Tokenmill's objects under LMDeploy's names.

`install()` puts a finder before all others, so that a real LMDeploy, where there is one, is not read. A name or module
that is not here raises ImportError or AttributeError that says so; nothing is a stand-in that does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from tokenmill.tokenize.naming import template_of

# The version whose surface this is; programs compare it.
VERSION = "0.9.2"
_CONFIGS = dict.fromkeys(("GenerationConfig", "TurbomindEngineConfig", "PytorchEngineConfig", "QuantPolicy"), "configs")
_SMALL = dict.fromkeys(("EngineOutput", "ResponseType", "SpeculativeConfig", "VisionConfig"), "messages")
_STARTS = {"pipeline": "pipeline", "serve": "serving", "client": "client"}
# Module of `lmdeploy` -> name -> module of tokenmill.api (or what the name stands for there).
SURFACE: dict[str, dict[str, str]] = {
    "lmdeploy": {
        **_STARTS, **_CONFIGS, "ChatTemplateConfig": "configs", "VisionConfig": "messages", "Pipeline": "pipeline",
        "Tokenizer": "tokenizer",
    },
    "lmdeploy.api": _STARTS,
    "lmdeploy.messages": {**_CONFIGS, **_SMALL, "Response": "response"},
    "lmdeploy.model": {"ChatTemplateConfig": "configs", "best_match_model": "facade"},
    "lmdeploy.tokenizer": {"Tokenizer": "tokenizer", "DetokenizeState": "tokenizer"},
    "lmdeploy.version": {},
    "lmdeploy.serve": {},
    "lmdeploy.serve.openai": {},
    "lmdeploy.serve.openai.api_client": {"APIClient": "client", "get_model_list": "client"},
    "lmdeploy.turbomind": {"TurbomindEngineConfig": "configs"},
    "lmdeploy.pytorch": {"PytorchEngineConfig": "configs"},
    "lmdeploy.vl": {"load_image": "load_image"},
    "lmdeploy.vl.utils": {"load_image": "load_image"},
    "lmdeploy.vl.constants": {"IMAGE_TOKEN": "load_image"},
    "lmdeploy.utils": {"get_logger": "facade"},
}  # fmt: skip


def best_match_model(query: str) -> str | None:
    """The chat template a model's name means."""
    return template_of(query)


def get_logger(name: str | None = None) -> object:
    from tokenmill.log import get_logger as ours

    return ours()


class Facade(ModuleType):
    """One module of `lmdeploy`. Its objects are found when first used, so that importing it is quick."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"Tokenmill under the name {name}.")
        self.__all__ = list(SURFACE[name])
        if name in ("lmdeploy", "lmdeploy.version"):
            self.__version__ = VERSION
            self.version_info = tuple(int(part) for part in VERSION.split("."))

    def __getattr__(self, name: str) -> object:
        home = SURFACE[self.__name__].get(name)
        if home is None:
            raise AttributeError(f"Tokenmill has no {self.__name__}.{name}; see docs/rooms/api.md for what it has")
        value = getattr(import_module(f"tokenmill.api.{home}"), name)
        setattr(self, name, value)
        return value


class Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != "lmdeploy":
            return None
        if fullname not in SURFACE:
            raise ModuleNotFoundError(f"Tokenmill has no {fullname}; it has {', '.join(SURFACE)}", name=fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Facade(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs: names are found when used."""


def install() -> None:
    """From now on `import lmdeploy` means Tokenmill in this process. Harmless when repeated."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
