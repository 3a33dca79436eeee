"""Command lines of LMDeploy's tutorials and flags of its three generations, as typed: each is taken, or says why not.

Nothing is loaded here; what the commands do is tested in tests/e2e.
"""

from __future__ import annotations

import shlex

import pytest

from tokenmill.cli import main as cli
from tokenmill.cli.main import TABLE, Group, Verb
from tokenmill.cli.options import engine_config

# (command, {field of the engine's config: value}); commands of the surface contract's 1.8, then a row of 1.11 each.
SERVE = "--server-name 0.0.0.0 --server-port 23333 --tp 1"
TUTORIALS: list[tuple[str, dict[str, object]]] = [
    ("lite auto_awq MODEL --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 1024 --w-bits 4 --w-group-size 128 "
     "--work-dir DIR", {}),
    ("lite auto_awq MODEL --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 --w-bits 4 --w-group-size 128 "
     "--batch-size 1 --search-scale False --work-dir DIR", {}),
    (f"serve api_server DIR --model-format awq --cache-max-entry-count 0.4 {SERVE}",
     {"model.weight_format": "awq", "cache.memory_frac": 0.4, "parallel.tp": 1}),
    (f"serve api_server DIR --model-format hf --quant-policy 0 --cache-max-entry-count 0.4 {SERVE}",
     {"model.weight_format": None, "cache.kv": "auto", "cache.memory_frac": 0.4}),
    (f"serve api_server DIR --model-format awq --quant-policy 4 --cache-max-entry-count 0.1 {SERVE}",
     {"model.weight_format": "awq", "cache.kv": "int4", "cache.memory_frac": 0.1}),
    (f"serve api_server DIR --model-format hf --quant-policy 4 --cache-max-entry-count 0.6 {SERVE}",
     {"cache.kv": "int4", "cache.memory_frac": 0.6}),
    ("convert internlm-chat-7b PATH", {}),
    ("chat turbomind ./workspace", {"model.path": "./workspace"}),
    ("serve api_server ./workspace --server_name 0.0.0.0 --server_port 23333 --instance_num 64 --tp 1",
     {"model.path": "./workspace", "scheduler.max_rows": 64}),
    ("chat turbomind internlm/internlm-chat-20b-4bit --model-name internlm-chat-20b",
     {"model.path": "internlm/internlm-chat-20b-4bit"}),
    ("chat turbomind Qwen/Qwen-7B-Chat --model-name qwen-7b", {"model.path": "Qwen/Qwen-7B-Chat"}),
    ("serve gradio http://localhost:23333 --server-name 0.0.0.0 --server-port 6006", {}),
    ("chat turbomind LOCAL_DIR --model-name internlm-chat-7b", {"model.path": "LOCAL_DIR"}),
    ("chat DIR --model-format awq --cache-max-entry-count 0.5",
     {"model.weight_format": "awq", "cache.memory_frac": 0.5}),
    ("chat DIR --cache-max-entry-count 0.4", {"cache.memory_frac": 0.4}),
    (f"serve api_server MODEL {SERVE}", {"model.path": "MODEL"}),
    ("serve api_client http://localhost:23333", {}),
    ("serve api_client http://0.0.0.0:23333 --session-id 1 --api-key k", {}),
    ("check_env", {}),
    ("list --engine turbomind", {}),
]  # fmt: skip

# One command that holds every flag of a section, with a value of the contract.
WHOLE_SECTIONS: list[tuple[str, dict[str, object]]] = [
    ("chat MODEL --backend turbomind --chat-template internlm2 --revision main --download-dir D --trust-remote-code "
     "--device cuda --eager-mode --prefix-cache-state-budget 0 --prefix-cache-decode-state-interval 0 --dtype auto "
     "--tp 1 --session-len 2048 --cache-max-entry-count 0.8 --enable-prefix-caching --quant-policy 8 "
     "--language-model-only --model-format hf --rope-scaling-factor 2.0 --communicator nccl --cp 1 --async 1 "
     "--speculative-algorithm none --speculative-num-draft-tokens 1 --meta-instruction 'Be short.' --cap chat "
     "--model-name internlm2 --session-id 1 --stream-output True --cache-block-seq-len 64",
     {"model.rope_scaling_factor": 2.0, "cache.kv": "int8", "cache.block_tokens": 64, "kernels.eager": True}),
    ("chat torch MODEL --tokenizer-path T --accel deepspeed --max-new-tokens 128 --temperature 0.8 --top-p 0.95 "
     "--seed 0 --use-fast-tokenizer True --max-alloc 2048 --max-session-len 4096 --log-file L --debug --adapter A",
     {"model.path": "MODEL", "model.max_model_tokens": 4096}),
    ("serve api_server MODEL --server-name 0.0.0.0 --server-port 23333 --instance-num 64 --allow-origins http://a "
     "--allow-methods GET POST --allow-headers x --allow-credentials --api-keys a b --ssl --model-name m "
     "--log-level WARNING --max-log-len 10 --disable-fastapi-docs --max-concurrent-requests 4 "
     "--allow-terminate-by-client --enable-abort-handling --chat-template internlm2 --tool-call-parser internlm2 "
     "--reasoning-parser think_tags --generation-config auto --trust-remote-code --revision r --download-dir d "
     "--backend pytorch --qos-config-path '' --cap chat",
     {"scheduler.max_rows": 64, "model.backend": "native", "model.revision": "r"}),
    ("serve api_server MODEL --dtype float16 --tp 1 --session-len 4096 --max-batch-size 128 "
     "--cache-max-entry-count 0.8 --cache-block-seq-len 64 --enable-prefix-caching --max-prefill-token-num 8192 "
     "--quant-policy 0 --model-format compressed-tensors --hf-overrides '{}' --disable-metrics --dp 1 --ep 1 "
     "--nnodes 1 --node-rank 0 --language-model-only --enable-microbatch --enable-eplb --role Hybrid "
     "--migration-backend DLSlime --cudagraph-capture-batch-sizes 1 2 4",
     {"model.dtype": "float16", "scheduler.max_step_tokens": 8192, "kernels.capture_rows": (1, 2, 4)}),
    ("serve api_server MODEL --device cuda --eager-mode --logprobs-mode raw_logprobs "
     "--dllm-unmasking-strategy low_confidence_static --dllm-confidence-threshold 0.85 "
     "--enable-return-routed-experts --distributed-executor-backend mp --kernel-block-size -1 --cp 1 "
     "--rope-scaling-factor 0.0 --num-tokens-per-iter 0 --max-prefill-iters 1 --async 1 --communicator native "
     "--dist-init-addr 127.0.0.1:5000 --vision-max-batch-size 1 --enable-metrics --disable-vision-encoder",
     {"parallel.init_method": "127.0.0.1:5000", "scheduler.overlap": True, "model.language_only": True}),
    ("check_env --dump-file env.json", {}),
    ("serve gradio MODEL --server-name 0.0.0.0 --server-port 6006 --share False --batch-size 32 --tp 1 "
     "--model-format awq --session-len 8192", {"model.weight_format": "awq", "model.max_model_tokens": 8192}),
    ("lite auto_awq MODEL WORK_DIR --w_bits 4 --w_sym False --w_group_size 128 --device cuda", {}),
]  # fmt: skip


def found(command: str) -> tuple[Verb, str, list[str]]:
    """The verb of a command line, its name, and the words after it."""
    words = shlex.split(command)
    entry = cli.find(TABLE, words[0])
    name, rest = words[0], words[1:]
    if isinstance(entry, Group):
        name, entry, rest = f"{name} {rest[0]}", cli.find(entry.verbs, rest[0]), rest[1:]
    assert isinstance(entry, Verb), f"there is no {name}"
    return entry, f"tokenmill {name}", rest


def spelled(command: str) -> list[str]:
    """The command as typed, and with the other spelling of its options."""
    other = [w.replace("-", "_").replace("__", "--", 1) if w.startswith("--") else w for w in shlex.split(command)]
    return [command, shlex.join(other)]


@pytest.mark.parametrize(("command", "fields"), TUTORIALS + WHOLE_SECTIONS)
def test_a_tutorial_line_is_taken(
    command: str, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    for line in spelled(command):
        verb, name, words = found(line)
        args = cli.parse(verb, name, words)
        config = engine_config(args, args.model) if hasattr(args, "engine_cache_kv") else None
        for field, value in fields.items():
            part, attribute = field.split(".")
            assert getattr(getattr(config, part), attribute) == value
        shown = capsys.readouterr()
        assert not shown.out and all(text.startswith("note: ") for text in shown.err.splitlines())


def test_each_flag_without_effect_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    verb, name, words = found(WHOLE_SECTIONS[1][0])
    cli.parse(verb, name, words)
    noted = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert sorted(noted) == sorted(
        ["--tokenizer-path", "--accel", "--use-fast-tokenizer", "--max-alloc", "--max-session-len", "--log-file",
         "--debug", "--adapter"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("chat MODEL --tp x", "whole number"),
        ("chat MODEL --device ascend", "ascend"),
        ("chat MODEL --model-format llama", "consolidated"),
        ("chat MODEL --dllm-block-length 4", "diffusion models are not served"),
        ("chat", "MODEL"),
        ("chat a b", "unrecognized arguments: b"),
        ("serve api_server MODEL --adapters a=b", "LoRA"),
        ("serve api_server MODEL --dp 2", "several replicas"),
    ("serve gradio MODEL --share", "another company's servers"),
        ("serve api_server MODEL --role Prefill", "separate servers"),
        ("serve api_server MODEL --quant-policy 42", "not served"),
        ("serve api_server MODEL --server-port http", "invalid int value"),
        ("list --families maybe", "unrecognized arguments: maybe"),
    ],
)
def test_what_is_not_served_is_one_line_and_2(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(*found(command))
    shown = capsys.readouterr()
    assert ended.value.code == 2 and not shown.out
    assert shown.err.startswith("error: ") and words in shown.err and shown.err.count("\n") == 1


def test_the_first_generation_s_engine_word_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from tokenmill.cli import chat

    args = cli.parse(*found("chat turbomind --tp 1 MODEL"))
    assert args.model == "MODEL"
    chat.check(args)
    assert capsys.readouterr().err == "note: 'chat turbomind MODEL' is now 'chat MODEL': there is one engine\n"
    assert cli.main(["chat", "MODEL", "--cap", "infilling"]) == 2
