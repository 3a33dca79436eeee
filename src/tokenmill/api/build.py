"""The composition root: a configuration becomes a served model. The one file that knows all rooms.

    engine = await open_text_engine(EngineConfig(model=ModelConfig("demo")))

Everything that can be wrong with names, files and templates is refused before the weights are read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from tokenmill.api.codec import Codec
from tokenmill.api.contract import SamplingDefaults, TextEngine, TextLimits
from tokenmill.api.grammars import GrammarCheck, token_table
from tokenmill.api.hub import resolve_model
from tokenmill.api.images import ImageDesk
from tokenmill.api.parsers import ParserNames, parser_names
from tokenmill.api.prepare import end_of_text
from tokenmill.api.session import ServedModel, TextParts
from tokenmill.api.templates import template_choice
from tokenmill.api.workspace import unfold
from tokenmill.config import EngineConfig, MediaConfig, validate
from tokenmill.engine.contract import Engine
from tokenmill.errors import ConfigError, FormatError
from tokenmill.grammar.compiler import Compiler
from tokenmill.models.spec import read_spec
from tokenmill.tokenize.choose import TemplateChoice, choose_template
from tokenmill.tokenize.folder import TextFolder, read_json
from tokenmill.tokenize.loader import load_tokenizer
from tokenmill.tokenize.template import ChatTemplate
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.vision.facts import ImageFacts, read_facts, read_processor
from tokenmill.vision.fetch import MediaPolicy

RUNNER = "tokenmill.runner.runner:make_runner"
GRAMMARS = "tokenmill.api.build:make_compiler"


@dataclass(frozen=True)
class TextSide:
    """What is known of a model's text before its weights are read."""

    folder: TextFolder
    tokenizer: Tokenizer
    template: ChatTemplate
    parsers: ParserNames
    vocab_size: int
    images: ImageFacts | None = None
    media: MediaPolicy = MediaPolicy()


async def open_text_engine(
    config: EngineConfig,
    *,
    name: str | None = None,
    chat_template: str | TemplateChoice | None = None,
    tool_call_parser: str | None = None,
    reasoning_parser: str | None = None,
    generation_config: str = "auto",
) -> TextEngine:
    """The model of `config.model.path`, loaded and ready.

    name: under which it is served (the path as typed). chat_template: a builtin name, a .json or .jinja file, or a
    choice. generation_config: `auto` (the folder's generation_config.json), `lmdeploy` (none of it), or a folder.
    """
    asked = config.model.path
    config, name = unfold(config, name)
    served = name or asked
    config, side = await asyncio.to_thread(
        open_text_side, validate(config), _choice(chat_template), tool_call_parser, reasoning_parser, (served, asked)
    )
    try:
        defaults = sampling_defaults(side.folder, generation_config)
        engine = await start(config)
    except BaseException:
        side.template.close()
        raise
    try:
        return await serve(engine, side, served, defaults)
    except BaseException:
        await engine.close()
        raise


def open_text_side(
    config: EngineConfig, choice: TemplateChoice, tools: str | None, reasoning: str | None,
    model_names: tuple[str, ...] = (),
) -> tuple[EngineConfig, TextSide]:
    """The configuration with its model as a folder, and that folder's tokenizer, template and parsers. `model_names`:
    how the model is called, which decides the template of a folder without one."""
    model = config.model
    path = resolve_model(model.path, model.revision, model.download_dir)
    config = replace(config, model=replace(model, path=str(path)))
    vocab_size = read_spec(path, config.model).vocab_size
    folder, tokenizer = TextFolder.read(path), load_tokenizer(path)
    parsers = parser_names(tools, reasoning, tokenizer.vocabulary)
    template = choose_template(choice, folder, tokenizer.vocabulary, model_names)
    images = None
    if not model.language_only:
        images = read_facts(folder.config, read_processor(path), tokenizer.vocabulary.token_id)
    return config, TextSide(folder, tokenizer, template, parsers, vocab_size, images, media_policy(config.media))


def media_policy(config: MediaConfig) -> MediaPolicy:
    """Raises ConfigError where the folder of files is none."""
    folder = None if config.folder is None else Path(config.folder)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--allowed-local-media-path {folder} is no folder")
    return MediaPolicy(config.domains, folder)


async def start(config: EngineConfig) -> Engine:
    """The engine: in a process of its own wherever there is a GPU."""
    from tokenmill.engine.client import start_engine

    engine: Engine = await start_engine(RUNNER, config, own_process=uses_gpu(config), compile_grammar=GRAMMARS)
    return engine


async def serve(engine: Engine, side: TextSide, name: str, defaults: SamplingDefaults) -> ServedModel:
    """A running engine and its text side as one served model."""
    stats = await engine.stats()
    images = None if side.images is None else ImageDesk(side.images, side.media)
    return ServedModel(
        engine,
        TextParts(
            name=name,
            codec=Codec(side.tokenizer, side.template, side.vocab_size, images),
            limits=TextLimits(stats.max_model_tokens, side.vocab_size, images is not None),
            end=end_of_text(side.folder, side.tokenizer, side.template),
            defaults=defaults,
            parsers=side.parsers,
            grammars=_grammars(side),
        ),
    )


def _grammars(side: TextSide) -> GrammarCheck | None:
    """None where no token ends an answer: a constrained one could not end either."""
    try:
        return GrammarCheck(Compiler(token_table(side.tokenizer, side.folder.eos_ids(), side.vocab_size)))
    except ConfigError:
        return None


def make_compiler(config: EngineConfig) -> Compiler:
    """What the engine's process compiles grammars with; `config.model.path` is a folder there."""
    folder = TextFolder.read(Path(config.model.path))
    tokenizer, vocab_size = load_tokenizer(folder.path), read_spec(folder.path, config.model).vocab_size
    return Compiler(token_table(tokenizer, folder.eos_ids(), vocab_size))


def uses_gpu(config: EngineConfig) -> bool:
    import torch

    return config.kernels.device != "cpu" and torch.cuda.is_available()


def sampling_defaults(folder: TextFolder, source: str = "auto") -> SamplingDefaults:
    """What generation_config.json says. Raises FormatError where a value is of the wrong kind."""
    if source == "lmdeploy":
        return SamplingDefaults()
    said = folder.generation if source == "auto" else read_json(Path(source) / "generation_config.json")
    top_k = _number(said, "top_k")
    return SamplingDefaults(
        temperature=_number(said, "temperature"),
        top_p=_number(said, "top_p"),
        top_k=None if top_k is None else int(top_k),
        repetition_penalty=_number(said, "repetition_penalty"),
    )


def _number(said: dict[str, object], name: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"generation_config.json: {name} is {value!r}; it must be a number")
    return float(value)


def _choice(wish: str | TemplateChoice | None) -> TemplateChoice:
    return wish if isinstance(wish, TemplateChoice) else template_choice(wish)
