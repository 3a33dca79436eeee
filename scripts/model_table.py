#!/usr/bin/env python3
"""Writes docs/models.md: every family, run here on a random checkpoint of its own form, beside its reference.

    python scripts/model_table.py [FAMILY ...]      (all of them: about a minute of one core; names: their rows alone)

Everything is computed in fp32 on the CPU. The reference is transformers; families that it lacks run in it as the class
that their `FAMILY.twin` names. Rows:
- logits: the largest difference over 100 tokens, at once and in chunks of 7, and the logits' own size.
- greedy: 64 tokens, one at a time over the paged cache; the reference's best token at every place is the same.
- template: the folder's own Jinja text on 20 conversations, against transformers' `apply_chat_template`.
- awq, gptq, fp8: the same comparison for a folder whose linears are stored so, against the numbers they stand for.
- int8, int4: the mean KL divergence, in nats a token, that the quantized cache costs these random weights.
Reward models have a score in place of logits, and no text. Families with a vision tower have rows of their own: what
the tower makes of two images, the logits of a prompt with them, and 64 greedy tokens behind an image, from the engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenmill.config import CacheConfig, EngineConfig, ModelConfig
from tokenmill.engine.client import start_engine
from tokenmill.errors import ConfigError
from tokenmill.models.build import build_model
from tokenmill.models.family import Family
from tokenmill.models.multimodal import Multimodal
from tokenmill.models.parity import LIMIT, Probe, check_parity
from tokenmill.models.solo import Solo
from tokenmill.models.spec import families, layer_linears, multimodals, read_arch, read_config
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import build_score_twin, build_twin, load_whole_twin, plain_tensors
from tokenmill.quant.grid import make_grid
from tokenmill.quant.methods.fp8 import by_tensor
from tokenmill.quant.recipe import Recipe
from tokenmill.tokenize.choose import TemplateChoice, choose_template
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.types import Request, Sampling, Stop
from tokenmill.vision.facts import read_facts, read_processor
from tokenmill.vision.pool import Cut
from tokenmill.vision.prompt import Placed, expand
from tokenmill.weights.format import load_format
from tokenmill.weights.scheme import Scheme
from tokenmill.weights.source import open_source

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
RUNNER = "tokenmill.runner.runner:make_runner"
TOKENS, PROMPT, GREEDY = 100, 24, 64
FORMATS = {
    "awq": Scheme("awq", "int", "gemm", 4, 32, False),
    "gptq": Scheme("gptq", "int", "gptq", 4, 32, True),
    "fp8": Scheme("fp8", "fp8-tensor", bits=8, activation="fp8-tensor"),
}
# Within the trained length: beyond it Qwen v1 has a rotation and a factor that no class of transformers has.
OVERRIDES: dict[str, dict[str, Any]] = {"qwen": {"seq_length": 256}}
# Beyond the trained length a request keeps its prompt's rotation, while transformers bends it again as the text grows.
ANSWERED: dict[str, dict[str, Any]] = {
    **OVERRIDES,
    "internlm": {"max_position_embeddings": 256},
    "internlm3": {"max_position_embeddings": 256},
    "phi3": {"original_max_position_embeddings": 128},
}
# Widths that groups of 32 divide.
QUANTIZED: dict[str, dict[str, Any]] = {name: {"moe_intermediate_size": 64} for name in ("deepseek_v2", "deepseek_v3")}
WORDS = ("Hi", "你好 {x} <|x|>", " a\nb ", "12 + 30 = 42", "🦊 [INST] </s>")
HEAD = """# Model families

Written by `scripts/model_table.py` from its own runs; do not edit. Every family is run on a random checkpoint in its
own on-disk form (`tokenmill.models.tiny`), in fp32 on the CPU, beside transformers {version}.

"""
COLUMNS = (
    "family", "architectures", "reference", "logits differ by at most", "64 greedy tokens", "template, 20 talks", "AWQ",
    "GPTQ", "FP8", "KV int8", "KV int4",
)  # fmt: skip
VISION_COLUMNS = (
    "family with images", "architectures", "reference", "image features differ by at most", "logits, two images",
    "64 greedy tokens behind an image", "language part as",
)  # fmt: skip
FOOT = """
AWQ, GPTQ, FP8: a folder stored so computes what its dequantized numbers do (yes), within the limit of {limit:g} of the
logits' size. `lite` makes such folders for families whose layers are plain attention and one gated MLP; of mixtral,
qwen2_moe and qwen3_moe by `--method rtn`, blocked_fp8 and smooth_quant's fp8. KV: mean KL
divergence in nats a token against the plain cache, of random weights, whose attention is far from a trained model's.
The template is the tiny folder's own (ChatML); builtin templates are compared with published forms in
`tests/cpu/test_templates.py`.

- Greedy answers lie within the trained length: beyond it a request keeps the rotation that its prompt's length gives,
  while transformers' dynamic rotations change as the text grows. Logits are compared beyond it, too.
- Reward models: the last token's score in place of logits, and for KV its difference.
- `qwen` is compared within its trained length here; NTK and LogN beyond it by the published formulas, in
  `tests/cpu/test_families.py`. So is the 13B Baichuan's ALiBi.
- `deepseek_v2`, `deepseek_v3` keep one latent a token in the cache; it is not quantized.
- `gpt_oss` has MXFP4 experts, compared with transformers' own unpacking in `tests/cpu/test_experts.py`.
- Families with images: what is not in their rows is the row's of the family named last. `lite` quantizes that part
  where it quantizes that family (Gemma's it does not); tests of it are named in `docs/rooms/vision.md`.
- No real weights are available where this page is made: its figures say that the arithmetic is right, not how a
  released checkpoint answers.
"""


def main(names: Sequence[str]) -> int:
    import transformers

    chosen = sorted(set(names) or {**families(), **multimodals()})
    rows = [row(families()[name]) for name in chosen if name in families()]
    seeing = [vision_row(multimodals()[name]) for name in chosen if name in multimodals()]
    print("\n".join(rows + seeing))
    if not names:
        tables = table(COLUMNS, rows) + "\n\n" + table(VISION_COLUMNS, seeing)
        head, foot = HEAD.format(version=transformers.__version__), FOOT.format(limit=LIMIT)
        PAGE.write_text(head + tables + "\n" + foot, encoding="utf-8")
    return 0


def table(columns: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *rows])


@torch.inference_mode()
def row(family: Family) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = make_tiny(family.name, Path(place) / "plain", overrides=OVERRIDES.get(family.name))
        twin = reference(folder)
        cells = [f"`{family.name}`", ", ".join(family.architectures), twin_name(family, twin), logits(folder, twin)]
        answering = make_tiny(family.name, Path(place) / "answering", overrides=ANSWERED.get(family.name))
        cells += ["no text" if family.score else yes(greedy(answering, reference(answering))), yes(template(folder))]
        cells += [quantized(family, scheme, Path(place) / name) for name, scheme in FORMATS.items()]
        cells += [kv_cost(folder, kind) for kind in ("int8", "int4")]
    return "| " + " | ".join(cells) + " |"


def yes(value: bool) -> str:
    return "yes" if value else "NO"


def reference(folder: Path) -> Any:
    """As `load_twin`, also for rotations that transformers has only within the trained length."""
    family, arch = read_arch(folder)
    raw, tensors = read_config(folder), plain_tensors(family, arch, open_source(folder))
    if family.twin is not None:
        tensors, raw = family.twin.tensors(tensors, raw), family.twin.config(raw)
    return build_twin(raw, tensors) if family.score is None else build_score_twin(raw, tensors, family.score)


def twin_name(family: Family, twin: Any) -> str:
    name = f"{type(twin.model).__name__} and torch's linears" if family.score else type(twin).__name__
    return name if family.twin is None else f"{name}, tensors regrouped"


def logits(folder: Path, twin: Any) -> str:
    ids_T = random_ids(TOKENS)
    theirs = twin(ids_T[None]).logits[0]
    worst = max(float((ours(folder, ids_T, chunk) - theirs).abs().max()) for chunk in (TOKENS, 7))
    size = float(theirs.square().mean().sqrt())
    mark = "" if worst <= LIMIT * max(size, 1.0) else " **DIFFERS**"
    return f"{worst:.1e} of {size:.1f}{mark}"


def ours(folder: Path, ids_T: Tensor, chunk: int, kv: str = "auto") -> Tensor:
    """Logits, or the last token's score."""
    solo = Solo(build_model(folder), len(ids_T), kv)
    return solo.model.pool(solo.hidden(ids_T, chunk)[-1:]) if solo.model.score else solo.logits(ids_T, chunk)


@torch.inference_mode()
def vision_row(joined: Multimodal) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = make_tiny(joined.name, place)
        stages = check_parity(folder, Probe(tokens=TOKENS)).stages[-2:]
        differ = [f"{s.difference:.1e} of {s.size:.1f}{'' if s.ok else ' **DIFFERS**'}" for s in stages]
        language, _ = read_arch(folder)
        kind = type(load_whole_twin(folder, 3).model).__name__
        cells = [f"`{joined.name}`", ", ".join(joined.architectures), kind, *differ, yes(asyncio.run(seen(folder)))]
    return "| " + " | ".join([*cells, f"`{language.name}`"]) + " |"


async def seen(folder: Path) -> bool:
    """A question about an image, answered by the engine; the reference's best token at every place is the same."""
    tokenizer = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    facts = read_facts(config, read_processor(folder), tokenizer.vocabulary.token_id)
    assert facts is not None
    pieces, grid = facts.cutting.cut(gradient(150, 60))
    (folder / "pixels").write_bytes(pieces.tobytes())
    placed = Placed("pixels", folder / "pixels", facts.num_tokens(Cut("pixels", len(pieces), folder, grid)), grid)
    ids, media = expand(tokenizer.encode(f"Look: {facts.words.text} What is this?"), facts.words, [placed])
    cache = CacheConfig(num_blocks=64)
    engine = await start_engine(RUNNER, EngineConfig(model=ModelConfig(str(folder)), cache=cache), own_process=False)
    asked = Request("a", ids, Sampling(temperature=0.0), Stop(GREEDY), media=tuple(media))
    said = (await engine.score(asked)).token_ids
    await engine.close()
    whole = torch.tensor([*ids, *said[:-1]])
    logits = load_whole_twin(folder, facts.words.context_id).logits(whole, torch.from_numpy(pieces), (grid,))
    return len(said) == GREEDY and logits[len(ids) - 1 :].argmax(-1).tolist() == list(said)


def gradient(width: int, height: int) -> Image.Image:
    """Noise on a slope, so that every pixel matters."""
    slope = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Image.fromarray((slope + np.random.default_rng(1).integers(0, 56, (height, width, 3))).astype(np.uint8))


def random_ids(count: int) -> Tensor:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(3))


def greedy(folder: Path, twin: Any) -> bool:
    """Our own tokens, then the reference's best at each of their places: equal all the way is the same answer."""
    prompt_T = random_ids(PROMPT)
    solo = Solo(build_model(folder), PROMPT + GREEDY)
    solo.base = solo.model.spec.rope.for_prompt(PROMPT) if solo.model.spec.rope else 0.0
    said = [int(solo.logits(prompt_T)[-1].argmax())]
    while len(said) < GREEDY:
        said.append(int(solo.logits(torch.tensor(said[-1:]))[-1].argmax()))
    best_T = twin(torch.tensor([[*prompt_T.tolist(), *said[:-1]]])).logits[0].argmax(-1)[PROMPT - 1 :]
    return bool(torch.equal(best_T, torch.tensor(said)))


def template(folder: Path) -> bool:
    from transformers import PreTrainedTokenizerFast

    theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    mine = choose_template(TemplateChoice(), TextFolder.read(folder), load_tokenizer(folder).vocabulary)
    try:
        return all(
            mine.render(talk, (), {}) == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            for talk in conversations()
        )
    finally:
        mine.close()


def conversations() -> list[list[dict[str, str]]]:
    """20: of one to seven turns, with a system text in every second one."""
    talks = []
    for number in range(20):
        turns = [(("user", "assistant")[i % 2], WORDS[(number + i) % len(WORDS)]) for i in range(number % 4 * 2 + 1)]
        system = [("system", WORDS[number % len(WORDS)])] if number % 2 else []
        talks.append([{"role": role, "content": text} for role, text in (*system, *turns)])
    return talks


def quantized(family: Family, scheme: Scheme, folder: Path) -> str:
    """A folder stored in the scheme, compared with what it stands for; a dash where experts have no linears by name."""
    overrides = {**OVERRIDES.get(family.name, {}), **QUANTIZED.get(family.name, {})}
    make_tiny(family.name, folder, std=0.08, overrides=overrides)
    entry, arch = read_arch(folder)
    if arch.sparse is not None and entry.names.sparse is not None and not entry.names.sparse.shapes(arch.sparse):
        return "–"
    tensors, form = load_file(folder / "model.safetensors"), load_format(scheme.format)
    for index in range(arch.num_layers):
        for name in layer_linears(entry, arch, index):
            full = entry.names.layer.format(index) + name
            stored = form.write(rounded(tensors.pop(f"{full}.weight"), scheme), scheme)
            tensors |= {f"{full}.{suffix}": value.contiguous() for suffix, value in stored.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": form.manifest(scheme)}), "utf-8")
    return yes(agrees(folder))


def rounded(weight_NM: Tensor, scheme: Scheme) -> Any:
    if scheme.format == "fp8":
        return by_tensor(weight_NM)
    grid = make_grid(weight_NM, Recipe(group=scheme.group, symmetric=scheme.symmetric))
    return grid.weight(grid.codes(weight_NM))


def agrees(folder: Path) -> bool:
    try:
        return check_parity(folder, Probe(tokens=60)).ok
    except ConfigError:
        ids_T = random_ids(60)
        theirs = reference(folder)(ids_T[None]).logits[0]
        worst = float((ours(folder, ids_T, 7) - theirs).abs().max())
        return worst <= LIMIT * max(1.0, float(theirs.square().mean().sqrt()))


def kv_cost(folder: Path, kind: str) -> str:
    ids_T = random_ids(TOKENS)
    if build_model(folder).spec.latent:
        return "latent"
    plain, held = (ours(folder, ids_T, TOKENS, kv) for kv in ("auto", kind))
    if plain.numel() == 1:
        return f"score {float((plain - held).abs()):.1e}"
    plain, held = plain.log_softmax(-1), held.log_softmax(-1)
    return f"{float((plain.exp() * (plain - held)).sum(-1).mean()):.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
