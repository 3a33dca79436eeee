"""Programs that import `lmdeploy`, as tutorials print them, run unmodified on a tiny model."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenmill import as_lmdeploy
from tokenmill.api import facade
from tokenmill.models.tiny import make_tiny

OFFLINE = """
import sys
import lmdeploy
from lmdeploy import pipeline, GenerationConfig, TurbomindEngineConfig, ChatTemplateConfig
from lmdeploy.messages import PytorchEngineConfig, Response, QuantPolicy

model = sys.argv[1]
backend_config = TurbomindEngineConfig(session_len=128, cache_max_entry_count=0.2)
pipe = pipeline(model,
                backend_config=backend_config,
                chat_template_config=ChatTemplateConfig(model_name='internlm2', meta_instruction='Be kind.'))
gen_config = GenerationConfig(top_p=0.8, top_k=40, temperature=0.8, max_new_tokens=4)
response = pipe(['Hi, pls intro yourself', 'Shanghai is'], gen_config=gen_config)
assert isinstance(response[0], Response)
print([r.generate_token_len for r in response], [r.finish_reason for r in response])
prompts = [[{'role': 'user', 'content': 'Hi'}], [{'role': 'user', 'content': 'Hello'}]]
for item in pipe.stream_infer(prompts, gen_config=gen_config):
    assert item.index in (0, 1)
print(lmdeploy.__version__, QuantPolicy.INT8.value, __name__, sys.argv[1:])
"""
BESIDE = """
import helper
from lmdeploy.model import best_match_model
from lmdeploy.vl.constants import IMAGE_TOKEN
from lmdeploy import Tokenizer
t = Tokenizer('MODEL')
print(helper.NAME, best_match_model('internlm/internlm2-chat-7b'), IMAGE_TOKEN, t.decode(t.encode('hello')))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("internlm2", tmp_path_factory.mktemp("as") / "internlm2-chat-tiny")


def run(script: Path, *args: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    command = [sys.executable, "-m", "tokenmill.as_lmdeploy", str(script), *args]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_offline_tutorial(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "offline.py"
    script.write_text(OFFLINE)
    done = run(script, str(model), "--flag")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("[4, 4] ['length'") or "stop" in first
    assert second == f"0.9.2 8 __main__ ['{model}', '--flag']"


def test_a_script_with_a_module_beside_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("NAME = 'beside'\n")
    script = tmp_path / "beside.py"
    script.write_text(BESIDE.replace("MODEL", str(model)))
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "beside internlm2 <IMAGE_TOKEN> hello\n"), done.stderr


@pytest.fixture
def installed() -> Iterator[None]:
    before = list(sys.meta_path)
    facade.install()
    facade.install()
    yield
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.split(".")[0] == "lmdeploy"]:
        del sys.modules[name]


def test_every_name_is_there(installed: None) -> None:
    for module, names in facade.SURFACE.items():
        found = importlib.import_module(module)
        assert found.__all__ == list(names)
        for name in names:
            assert callable(getattr(found, name)) or isinstance(getattr(found, name), str)
    import lmdeploy  # type: ignore[import-not-found]

    import tokenmill

    assert lmdeploy.GenerationConfig is tokenmill.GenerationConfig and lmdeploy.version_info == (0, 9, 2)
    assert sum(isinstance(finder, facade.Finder) for finder in sys.meta_path) == 1


def test_what_is_missing_says_so(installed: None) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"Tokenmill has no lmdeploy\.pytorch\.kernels"):
        importlib.import_module("lmdeploy.pytorch.kernels")
    with pytest.raises(AttributeError, match=r"Tokenmill has no lmdeploy\.nothing"):
        _ = importlib.import_module("lmdeploy").nothing
    with pytest.raises(ImportError):
        from lmdeploy import nothing  # noqa: F401


def test_errors_of_a_script(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert as_lmdeploy.main([]) == 2 and as_lmdeploy.main(["--help"]) == 0
    assert as_lmdeploy.main([str(tmp_path / "none.py")]) == 2
    assert "there is no script" in capfd.readouterr().err
    script = tmp_path / "bad.py"
    script.write_text("from lmdeploy import pipeline\npipeline('/no/such/model')\n")
    done = run(script)
    assert done.returncode != 0 and done.stderr.startswith("error: there is no folder '/no/such/model'")
    assert "Traceback" not in done.stderr
