"""Chat templates: the folder's own against transformers' apply_chat_template, the builtin ones against published forms.

The Jinja texts here are our own writing of each model's published format; transformers renders them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.support.tokenizers_made import backend_of

from tokenmill import find
from tokenmill.errors import ConfigError, FormatError, RequestError
from tokenmill.tokenize.choose import TemplateChoice, builtin, builtin_names, choose_template
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.jinja import JinjaTemplate, JinjaWorker
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.tokenize.template import TemplatePieces
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.types import Message

U, A, S = "user", "assistant", "system"
TALKS: list[list[Message]] = [
    [{"role": U, "content": "Hi"}],
    [{"role": S, "content": "Be kind."}, {"role": U, "content": "你好 {x} <|x|>"}],
    [{"role": U, "content": "a\nb"}, {"role": A, "content": "c"}, {"role": U, "content": " d "}],
    [{"role": S, "content": "S"}, {"role": U, "content": "1"}, {"role": A, "content": "2"}, {"role": U, "content": "3"},
     {"role": A, "content": "4"}, {"role": U, "content": "5"}],
]  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (
    "{% set ns = namespace(sys='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.sys = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + ns.sys + m.content + ' [/INST]' }}{% set ns.sys = '' %}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FEATURES = """
{%- if messages[0].role == 'tool' %}{{ raise_exception('no tool first: ' + messages[0].content) }}{% endif %}
{%- set ns = namespace(n=0) %}
{{- bos_token }}
{% for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {%- if ns.n > 2 %}{% break %}{% endif %}
  {{ loop.index }}:{{ m.role | upper }}: {{ m.content | trim | tojson }} {{ m | tojson(indent=2) }}
    {%- generation %} {{ m.content[::-1] }} {% endgeneration %}
{% endfor %}
{% if tools is not none %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- macro f(x, y='z') %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f(2, y=true) }}
{{ {'b': 1, 'a': '二'} | tojson }} {{ messages | length }} {{ messages | map(attribute='role') | join(',') }}
{{ enable_thinking is defined and enable_thinking }} {{ add_generation_prompt }} {{ strftime_now('%Y') | length }}
{{ 'x'.split('y') }} {{ messages[-1].content.startswith('H') }} {{ none is none }}
"""
TOOL = {"type": "function", "function": {"name": "f", "description": "查", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder transformers and we both read."""
    path = tmp_path_factory.mktemp("folder")
    backend_of("byte_level").save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True,
              "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def ours(folder: Path, jinja: str) -> JinjaTemplate:
    read = TextFolder.read(folder)
    template = choose_template(TemplateChoice(jinja=jinja), read, load_tokenizer(folder).vocabulary)
    assert isinstance(template, JinjaTemplate)
    return template


def theirs(folder: Path, jinja: str, messages: list[Message], **options: Any) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"add_generation_prompt": True, **options}
    return str(tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False, **options))


@pytest.mark.parametrize("jinja", [CHATML, HEADERS, INST, FEATURES])
def test_a_folders_own_template_renders_as_in_transformers(folder: Path, jinja: str) -> None:
    template = ours(folder, jinja)
    try:
        for talk in TALKS:
            assert template.render(talk, (), {}) == theirs(folder, jinja, talk)
            for thinking in (True, False):
                options = {"enable_thinking": thinking}
                assert template.render(talk, (), options) == theirs(folder, jinja, talk, **options)
        if jinja is FEATURES:
            rendered = template.render(TALKS[0], (TOOL,), {})
            assert rendered == theirs(folder, jinja, TALKS[0], tools=[TOOL]) and "查" in rendered
    finally:
        template.close()


@pytest.mark.parametrize("jinja", [CHATML, HEADERS, "{{ 'G' if add_generation_prompt else 'C' }} " + CHATML])
def test_the_last_assistant_message_is_continued(folder: Path, jinja: str) -> None:
    talk = [*TALKS[0], {"role": A, "content": "The answer"}]
    template = ours(folder, jinja)
    try:
        expected = theirs(folder, jinja, talk, add_generation_prompt=False, continue_final_message=True)
        assert template.render(talk, (), {}) == expected
        assert expected.endswith("The answer")
    finally:
        template.close()


@pytest.mark.parametrize(
    ("name", "jinja", "system"),
    [("qwen", CHATML, "You are a helpful assistant."), ("yi", CHATML, None), ("qwen3", CHATML, None),
     ("qwen2d5", CHATML, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
     ("llama3", HEADERS, None)],
)  # fmt: skip
def test_builtins_equal_the_published_format(folder: Path, name: str, jinja: str, system: str | None) -> None:
    for talk in TALKS:
        full = talk if talk[0]["role"] == S or system is None else [{"role": S, "content": system}, *talk]
        assert builtin(name).render(talk, (), {}) == theirs(folder, jinja, full)


def test_internlm2_is_chatml_with_its_own_system_text(folder: Path) -> None:
    template = builtin("internlm2")
    for talk in TALKS:
        text = template.render(talk, (), {})
        if talk[0]["role"] != S:
            assert text.startswith("<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).")
            text = text.split("<|im_end|>\n", 1)[1]
        assert text == theirs(folder, CHATML, talk)


def test_llama3_1_puts_dates_before_the_system_text(folder: Path) -> None:
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    talk = [{"role": S, "content": dates + "Be kind."}, *TALKS[0]]
    text = builtin("llama3_1").render([{"role": S, "content": "Be kind."}, *TALKS[0]], (), {})
    assert text == theirs(folder, HEADERS, talk)


def test_llama2_differs_from_its_authors_in_spaces_only(folder: Path) -> None:
    template = builtin("llama2").override(TemplatePieces(meta_instruction="M"))
    for talk in TALKS:
        full = talk if talk[0]["role"] == S else [{"role": S, "content": "M"}, *talk]
        text = "<s>" + template.render(talk, (), {})
        assert text.replace(" ", "") == theirs(folder, INST, full).replace(" ", "")


EXACT = {
    "vicuna": "SYS USER: 1 ASSISTANT: 2</s>USER: 3 ASSISTANT:",
    "internlm": "<|System|>:SYS\n<|User|>:1\n<|Bot|>:2<eoa>\n<|User|>:3\n<|Bot|>:",
    "baichuan2": "SYS<reserved_106>1<reserved_107>2<reserved_106>3<reserved_107>",
    "chatglm3": "[gMASK]sop<|system|>\n SYS<|user|>\n 1<|assistant|>\n 2<|user|>\n 3<|assistant|>\n ",
    "base": "SYS123",
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_lmdeploys_exact_strings(name: str) -> None:
    talk = [{"role": S, "content": "SYS"}, {"role": U, "content": "1"}, {"role": A, "content": "2"},
            {"role": U, "content": "3"}]  # fmt: skip
    assert builtin(name).render(talk, (), {}) == EXACT[name]


def test_every_builtin_renders_and_continues() -> None:
    for name in builtin_names()[1:]:
        template = builtin(name)
        text = template.render(TALKS[2], (), {})
        assert "a\nb" in text and text.index("c") < text.rindex("d")
        continued = template.render([*TALKS[0], {"role": A, "content": "So far"}], (), {})
        assert continued.endswith("So far")
    assert {n.replace("-", "_") for n in builtin_names()} >= set(find.names("tokenmill.tokenize.chat"))
    with pytest.raises(ConfigError, match="vicuna"):
        builtin("no-such")


def test_tools_of_builtins() -> None:
    talk: list[Message] = [
        {"role": U, "content": "q"},
        {"role": A, "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "二"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "r1"}, {"role": "tool", "content": "r2"},
    ]  # fmt: skip
    qwen = builtin("qwen2d5").render(talk, (TOOL,), {})
    assert f"<tools>\n{json.dumps(TOOL, ensure_ascii=False)}\n</tools>" in qwen
    assert '<tool_call>\n{"name": "f", "arguments": {"x": "二"}}\n</tool_call><|im_end|>' in qwen
    assert "user\n<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response><|im_end|>" in qwen
    intern = builtin("internlm2").render(talk, (TOOL,), {})
    assert "<|im_start|>system name=<|plugin|>\n[{" in intern
    assert '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"x": "二"}}<|action_end|><|im_end|>' in intern
    assert "<|im_start|>environment name=<|plugin|>\nr1<|im_end|>" in intern
    with pytest.raises(RequestError, match="tools"):
        builtin("vicuna").render(TALKS[0], (TOOL,), {})


@pytest.fixture(scope="module")
def hostile() -> Iterator[JinjaWorker]:
    templates = {
        "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "memory": "{{ 'x' * 900000000 }}{{ 'y' * 900000000 }}",
        "growth": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "mutate": "{{ messages.append(1) }}",
        "refuse": "{{ raise_exception('alternate the roles') }}",
        "error": "{{ 1 / 0 }}", "import": "{% import 'x' as y %}", "fine": "{{ messages | length }}",
    }  # fmt: skip
    worker = JinjaWorker(templates, limit_s=2.0)
    worker.start()
    yield worker
    worker.close()


HOSTILE = ("loop", "memory", "growth", "class", "globals", "format", "mutate", "error", "import")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_and_leave_the_next_render_alone(hostile: JinjaWorker, name: str) -> None:
    started = time.monotonic()
    try:
        text = hostile.render(name, {"messages": [1, 2]})
    except RequestError as error:
        assert "template" in str(error) and "Traceback" not in str(error)
    else:
        # The sandbox makes an unsafe attribute undefined, which renders as nothing.
        assert name in ("class", "globals", "format") and not any(word in text for word in ("<class", "uid="))
    # Two seconds, and a new process; without a limit some of them take hours.
    assert time.monotonic() - started < 60.0
    assert hostile.render("fine", {"messages": [1, 2]}) == "2"


def test_a_templates_own_refusal_is_told(hostile: JinjaWorker) -> None:
    with pytest.raises(RequestError, match="refuses these messages: alternate the roles"):
        hostile.render("refuse", {})


def test_limits_and_bad_templates(folder: Path) -> None:
    with pytest.raises(FormatError, match="no valid Jinja"):
        ours(folder, "{% for x in %}")
    with pytest.raises(ConfigError, match="1048576"):
        ours(folder, "x" * ((1 << 20) + 1))
    template = ours(folder, CHATML)
    try:
        for wrong in ([], [{"content": "x"}], [{"role": U, "content": 5}]):
            with pytest.raises(RequestError):
                template.render(wrong, (), {})
        with pytest.raises(RequestError, match="tools"):
            template.render(TALKS[0], (TOOL,), {})
    finally:
        template.close()


def test_which_template_a_folder_gets(folder: Path, tmp_path: Path) -> None:
    nothing = Vocabulary(0, lambda token: b"", {})
    bare = TextFolder(tmp_path, {"model_type": "internlm2"}, {}, {}, {})
    assert choose_template(TemplateChoice(), bare, nothing).name == "internlm2"
    assert choose_template(TemplateChoice(name="vicuna"), bare, nothing).name == "vicuna"
    with pytest.raises(ConfigError, match="--chat-template internlm2"):
        choose_template(TemplateChoice(name="hf"), bare, nothing)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    own = choose_template(TemplateChoice(), bare, nothing)
    assert own.name == "hf"
    own.close()
    mine = choose_template(TemplateChoice("mine", TemplatePieces(user="Q: ", eoh="\n", assistant="A:")), bare, nothing)
    assert mine.render(TALKS[0], (), {}) == "Q: Hi\nA:"
