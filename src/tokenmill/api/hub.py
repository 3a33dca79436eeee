"""Where a model's files are: `demo`, a folder, or a hub name that is in the local cache or is downloaded.

Only data is fetched (JSON, safetensors, tokenizer and template files; `.bin` shards where a repository has nothing
else), never code. A download is whole or not there: the hub's cache is written file by file and renamed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tokenmill
from tokenmill import env
from tokenmill.errors import ConfigError, FormatError
from tokenmill.log import get_logger

DEMO = "demo"
DATA_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[\w][\w./-]{0,127}")


@dataclass(frozen=True, slots=True)
class HubName:
    """`org/name` with a branch, tag or commit."""

    name: str
    revision: str | None = None


def resolve_model(model: str, revision: str | None = None, download_dir: str | None = None) -> Path:
    """The folder of a model. Raises ConfigError on a name that is none, FormatError where there are no files."""
    if model == DEMO:
        return _demo()
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return _with_config(folder)
    if model and folder.exists():
        raise FormatError(f"{model} is a file; a model is a folder with config.json and weights")
    name = hub_name(model, revision)
    found = _fetch_modelscope(name, download_dir) if env.use_modelscope() else _fetch(name, download_dir)
    return _with_config(found)


def hub_name(model: str, revision: str | None = None) -> HubName:
    """`org/name[@rev]` taken apart. Raises ConfigError on anything else."""
    name, _, own = model.partition("@")
    wanted = own or revision or None
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"there is no folder {model!r}, and it is no hub name; give a folder, org/name[@rev] or demo")
    if wanted is not None and (not _REVISION.fullmatch(wanted) or ".." in wanted):
        raise ConfigError(f"{wanted!r} is no revision; give a branch, tag or commit")
    return HubName(name, wanted)


def _demo() -> Path:
    folder = Path(tokenmill.__file__).with_name("demo_model")
    if not (folder / "config.json").is_file():
        raise FormatError("this installation has no demo model (tokenmill/demo_model); install Tokenmill again")
    return folder


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder} has no config.json; a model is a folder with config.json, weights and a tokenizer")
    return folder


def _fetch(name: HubName, download_dir: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    offline = env.hub_offline()
    get_logger().info("looking for %s %s", name.name, "in the local cache" if offline else "on the hub")
    try:
        return _snapshot(name, download_dir, offline)
    except errors.GatedRepoError:
        raise ConfigError(f"{name.name} is gated: accept its terms on the hub and log in (hf auth login)") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{name.name} has no revision {name.revision!r} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(f"the hub has no model {name.name!r} (or it is private: hf auth login)") from None
    except errors.LocalEntryNotFoundError:
        why = "downloads are off (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached"
        raise ConfigError(f"{name.name} is not in the local cache and {why}; give a folder instead") from None
    except (errors.HfHubHTTPError, OSError, huggingface_hub.errors.HFValidationError) as error:
        raise ConfigError(f"{name.name} cannot be fetched from the hub: {_line(error)}") from None


def _snapshot(name: HubName, download_dir: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    def get(patterns: tuple[str, ...]) -> Path:
        path = snapshot_download(
            name.name, revision=name.revision, cache_dir=download_dir, local_files_only=offline,
            allow_patterns=list(patterns),
        )
        return Path(path)

    folder = get(DATA_FILES)
    if not any(folder.glob("*.safetensors")):
        folder = get((*DATA_FILES, "*.bin"))
    return folder


def _fetch_modelscope(name: HubName, download_dir: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise ConfigError(
            "TOKENMILL_USE_MODELSCOPE is set but modelscope is not installed; pip install 'tokenmill[modelscope]'"
        ) from None
    try:
        path = snapshot_download(
            name.name, revision=name.revision, cache_dir=download_dir, local_files_only=env.hub_offline(),
            allow_patterns=[*DATA_FILES, "*.bin"],
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name.name} cannot be fetched from ModelScope: {_line(error)}") from None
    return Path(path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
