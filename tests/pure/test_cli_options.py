"""Flags: every field has one, every spelling works, values arrive, and what is not served is refused in one line."""

from __future__ import annotations

import dataclasses
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.timing import best

from tokenmill.cli import options
from tokenmill.cli.main import TABLE, Group, Verb, main
from tokenmill.cli.parser import Parser
from tokenmill.config import EngineConfig
from tokenmill.errors import ConfigError

SRC = Path(__file__).parents[2] / "src"


def parse(line: str) -> EngineConfig:
    parser = Parser(prog="tokenmill test")
    parser.add_argument("model")
    options.add_engine_flags(parser)
    args = parser.parse_args(shlex.split(line))
    return options.engine_config(args, args.model)


def test_every_field_is_a_flag() -> None:
    config = EngineConfig()
    fields = {
        f"{part.name}.{f.name}" for part in dataclasses.fields(config)
        for f in dataclasses.fields(getattr(config, part.name))
    }
    assert {flag.field for flag in options.ENGINE_FLAGS} == fields - set(options.NOT_FLAGS)


def test_defaults_are_the_config_s_own() -> None:
    assert parse("demo") == EngineConfig()


@pytest.mark.parametrize(
    ("line", "part", "name", "value"),
    [
        ("m --session-len 2048", "model", "max_model_tokens", 2048),
        ("m --session_len=2048", "model", "max_model_tokens", 2048),
        ("m --model-format awq", "model", "weight_format", "awq"),
        ("m --model-format hf", "model", "weight_format", None),
        ("m --backend turbomind", "model", "backend", "native"),
        ("m --dtype float32", "model", "dtype", "float32"),
        ("m --hf-overrides '{\"a\": 1}'", "model", "hf_overrides", {"a": 1}),
        ("m --quant-policy 0", "cache", "kv", "auto"),
        ("m --quant-policy 4", "cache", "kv", "int4"),
        ("m --quant-policy int8", "cache", "kv", "int8"),
        ("m --cache-max-entry-count 0.4", "cache", "memory_frac", 0.4),
        ("m --hf-overrides.rope_scaling.type dynamic --hf_overrides.rope_scaling.factor=2.0", "model", "hf_overrides",
         {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("m --disable-vision-encoder", "model", "language_only", True),
        ("m --cache-max-entry-count 500", "cache", "num_blocks", 500),
        ("m --async 0", "scheduler", "overlap", False),
        ("--communicator nccl m", "model", "path", "m"),
        ("--dp 1 m --enable-eplb", "model", "path", "m"),
        ("m --cache_block_seq_len 32", "cache", "block_tokens", 32),
        ("m --kv-memory 2GiB", "cache", "memory_bytes", 2 << 30),
        ("m --max-batch-size 8", "scheduler", "max_rows", 8),
        ("m --instance_num 64", "scheduler", "max_rows", 64),
        ("m --tp 1", "parallel", "tp", 1),
        ("m --devices 0 1", "parallel", "devices", (0, 1)),
        ("m --eager-mode", "kernels", "eager", True),
        ("--eager_mode m", "kernels", "eager", True),
        ("m --eager-mode False", "kernels", "eager", False),
        ("m --eager-mode=true", "kernels", "eager", True),
        ("m --no-enable-prefix-caching", "cache", "prefix_caching", False),
        ("m --enable-prefix-caching false", "cache", "prefix_caching", False),
    ],
)
def test_values_arrive(line: str, part: str, name: str, value: object) -> None:
    assert getattr(getattr(parse(line), part), name) == value


@pytest.mark.parametrize("line", ["m --dp 1", "m --cp 1 --nnodes 1", "m --role Hybrid"])
def test_harmless_values_of_later_flags_are_taken(line: str) -> None:
    assert parse(line) == parse("m")


@pytest.mark.parametrize("name", options.LATER)
def test_later_flags_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(f"m {name} 7")
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith(f"error: {name} 7: ") and "not served" in shown and shown.count("\n") == 1


@pytest.mark.parametrize("line", ["m --quant-policy 42", "m --quant-policy 5", "m --eager-mode=perhaps", "m --tp 0",
                                  "m --unknown 1", "m --session-len many", "m --hf-overrides [1]", "m --kv-memory x"])
def test_a_bad_value_is_one_line_and_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(line)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("error: ") and shown.count("\n") == 1


def test_notes_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    parse("m --enable-prefix-caching --instance-num 3 --async 1 --communicator nccl --communicator native "
          "--enable-microbatch --enable-microbatch false")
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 5 and all(line.startswith("note: ") for line in shown)


def test_a_value_out_of_bounds_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--cache-max-entry-count"):
        parse("m --cache-max-entry-count 1.5")


def test_groups_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, word in (([], "chat"), (["serve"], "api_server"), (["lite"], "auto_awq"), (["--version"], "0.1")):
        assert main(argv) == 0
        assert word in capsys.readouterr().out


def test_unknown_verbs_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["nope"], ["serve", "nope"]):
        assert main(argv) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1


def test_help_starts_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from tokenmill.cli.main import main; main(['--help']);"
        "sys.exit(', '.join({'torch','transformers','fastapi','prompt_toolkit','numpy','asyncio'} & set(sys.modules))"
        " or 0)"
    )

    def processor_s() -> float:
        """So that a busy machine counts little."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                              env={"PYTHONPATH": str(SRC), "PATH": ""})  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert best(processor_s, 0.3) < 0.3


def verbs() -> list[tuple[str, Verb]]:
    flat = []
    for name, entry in TABLE.items():
        flat += [(f"{name} {n}", v) for n, v in entry.verbs.items()] if isinstance(entry, Group) else [(name, entry)]
    return flat


@pytest.mark.parametrize("name", [name for name, _ in verbs()])
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert f"tokenmill {name}" in capsys.readouterr().out
