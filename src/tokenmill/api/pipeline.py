"""`tokenmill.pipeline(model)`: a model in this program, called like a function.

    with pipeline("demo") as pipe:
        print(pipe("Hi").text)
        for piece in pipe.stream_infer("Hi"):
            print(piece.text, end="")

The engine runs on an event loop in a thread of its own, so that every method may be called from any thread, and the
async ones from any event loop. A prompt that is refused or fails gives a Response with finish_reason "error"; the
others go on. A dead engine raises EngineDeadError.
"""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from tokenmill import log
from tokenmill.api.compat import engine_config, generation_config, template_choice, text_request
from tokenmill.api.configs import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    TurbomindEngineConfig,
)
from tokenmill.api.contract import TextEngine
from tokenmill.api.loop import LoopThread, before_exit
from tokenmill.api.prompts import Prompt, per_prompt, sort_prompts
from tokenmill.api.response import Response, Session, response_of
from tokenmill.api.rows import NAMES as ROW_NAMES
from tokenmill.api.rows import Rows
from tokenmill.api.scoring import cross_entropy, reward
from tokenmill.config import MediaConfig
from tokenmill.errors import ConfigError, RequestError
from tokenmill.types import TextRequest

Opener = Callable[[], Awaitable[TextEngine]]
GenConfigs = GenerationConfig | list[GenerationConfig] | None
# Prompts tokenized and handed over ahead of the engine's seats; more would only fill memory.
AHEAD = 512
# Arguments of LMDeploy's pipeline that change nothing here.
_IGNORED = ("max_log_len", "vision_config")

__all__ = ["Pipeline", "Response", "Session", "pipeline"]


def pipeline(
    model_path: str,
    backend_config: TurbomindEngineConfig | PytorchEngineConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    log_level: str = "WARNING",
    model_name: str | None = None,
    **others: Any,
) -> Pipeline:
    """Loads a model: a folder, a hub name or `demo`. `tp=2` and `trust_remote_code=True` may follow.

    Raises ConfigError, FormatError or CapacityError, each with the fix.
    """
    log.configure(log_level)
    if others.pop("speculative_config", None) is not None:
        raise ConfigError("speculative decoding is not served; leave speculative_config out")
    for name in _IGNORED:
        others.pop(name, None)
    # Whoever runs a pipeline may read files and the web anyway.
    media = MediaConfig(tuple(others.pop("allowed_media_domains", None) or ("*",)), "/")
    trust = bool(others.pop("trust_remote_code", False))
    tp = others.pop("tp", None)
    if others:
        raise ConfigError(f"pipeline has no argument {', '.join(sorted(others))}")
    if tp is not None and backend_config is None:
        backend_config = TurbomindEngineConfig(tp=tp, enable_prefix_caching=True)
    config = replace(engine_config(str(model_path), backend_config, trust), media=media)
    choice = template_choice(chat_template_config)

    async def open_engine() -> TextEngine:
        from tokenmill.api.build import open_text_engine

        return await open_text_engine(config, name=model_name, chat_template=choice)

    return Pipeline(open_engine)


class Pipeline:
    """A loaded model. Use `pipeline(...)`; `close`, or a `with` block, frees it."""

    def __init__(self, opener: Opener) -> None:
        self._loop = LoopThread("tokenmill-pipeline")
        try:
            self._engine = self._loop.call(_await(opener))
        except BaseException:
            self._loop.close()
            raise
        self._gate = asyncio.Semaphore(AHEAD)
        self._close = weakref.finalize(self, _shut, self._loop, self._engine)
        self._close.atexit = False
        before_exit(self._close)

    # ---- answers

    def __call__(self, prompts: Any, gen_config: GenConfigs = None, **options: Any) -> Any:
        """A Response, or a list of them in the order of the prompts, with n answers to each together. See `infer`."""
        return self.infer(prompts, gen_config, **options)

    def infer(
        self, prompts: Any, gen_config: GenConfigs = None, do_preprocess: bool = True,
        adapter_name: str | None = None, use_tqdm: bool = False, **options: Any,
    ) -> Any:
        """`do_preprocess` False takes texts without a chat template. `options`: the arguments of before 0.3."""
        jobs = self._jobs(prompts, _generation(gen_config, options), do_preprocess, adapter_name)
        answers = self._loop.call(self._all(jobs.requests, use_tqdm))
        return answers[0] if jobs.single else answers

    batch_infer = infer

    def get_logits(self, input_ids: list[int] | list[list[int]]) -> Any:
        """Logits of every position, [sequences, tokens, vocabulary]; shorter sequences end in zeros (until 0.6)."""
        from torch.nn.utils.rnn import pad_sequence

        config = GenerationConfig(max_new_tokens=0, output_logits="all")
        found = self.infer(_many_ids("get_logits", input_ids), config)
        broken = next((r for r in found if r.logits is None), None)
        if broken is not None:
            raise RequestError(broken.error_message or "the engine gave no logits", 400, param="input_ids")
        return pad_sequence([r.logits for r in found], batch_first=True)

    async def ainfer(self, prompts: Any, gen_config: GenConfigs = None, do_preprocess: bool = True) -> Any:
        """`infer` for callers with an event loop of their own."""
        jobs = self._jobs(prompts, _generation(gen_config, {}), do_preprocess, None)
        answers = await asyncio.wrap_future(self._loop.submit(self._all(jobs.requests, False)))
        return answers[0] if jobs.single else answers

    def stream_infer(
        self, prompts: Any, sessions: Any = None, gen_config: GenConfigs = None, do_preprocess: bool = True,
        adapter_name: str | None = None, **options: Any,
    ) -> Iterator[Response]:
        """Pieces of the answers as they come; `index` says of which prompt, the last of each has a finish_reason."""
        stream_response = options.pop("stream_response", True)
        if sessions is not None:
            prompts = _with_history(prompts, sessions)
        jobs = self._jobs(prompts, _generation(gen_config, options), do_preprocess, adapter_name)
        return self._loop.iterate(self._merged(jobs.requests, whole=not stream_response))

    def astream_infer(
        self, prompts: Any, gen_config: GenConfigs = None, do_preprocess: bool = True
    ) -> AsyncIterator[Response]:
        """`stream_infer` for callers with an event loop of their own."""
        jobs = self._jobs(prompts, _generation(gen_config, {}), do_preprocess, None)
        return self._loop.aiterate(self._merged(jobs.requests, whole=False))

    generate = astream_infer

    def session(self) -> Session:
        """A new conversation."""
        return Session()

    def chat(
        self, prompt: Any, session: Session | None = None, gen_config: GenerationConfig | None = None,
        stream_response: bool = False, adapter_name: str | None = None,
    ) -> Any:
        """One turn. Gives the session with `response` set, or with `stream_response` an iterator of pieces."""
        session = session or self.session()
        pieces = self._turn(session, prompt, gen_config, adapter_name)
        session.generator = pieces
        if stream_response:
            return pieces
        for _ in pieces:
            pass
        return session

    # ---- scores

    def get_ppl(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """Mean cross-entropy of each sequence, in nats: the logarithm of its perplexity, as LMDeploy gives it."""
        items = [tuple(ids) for ids in _many_ids("get_ppl", input_ids)]
        # One token less than the context, as an engine keeps a place for the token that would come next.
        most = self._engine.limits.max_model_tokens - 1

        async def work() -> list[float]:
            return list(await asyncio.gather(*(cross_entropy(self._engine.engine, i, most) for i in items)))

        return self._loop.call(work())

    def get_reward_score(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """A reward model's score of each sequence. Raises ConfigError where the model is none."""
        items = sort_prompts(input_ids).items
        if not all(isinstance(item, tuple) and item and isinstance(item[0], int) for item in items):
            raise ConfigError("get_reward_score takes token ids: a list of them, or a list of such lists")

        async def work() -> list[float | None]:
            return list(await asyncio.gather(*(reward(self._engine.engine, i) for i in items)))  # type: ignore[arg-type]

        scores = [score for score in self._loop.call(work()) if score is not None]
        if len(scores) < len(items):
            raise ConfigError(f"{self._engine.name} is no reward model (InternLM2ForRewardModel, Qwen2ForRewardModel)")
        return scores

    # ---- memory

    def sleep(self, level: int = 1) -> None:
        """Ends what runs and gives memory back: the cache, and weights to the host (level 1) or away (level 2)."""
        self._check_open()
        self._loop.call(self._engine.sleep(level))

    def wakeup(self, tags: Sequence[str] | None = None) -> None:
        """Wakes `weights`, `kv_cache`, or both where none is named; answers are then what they were."""
        self._check_open()
        self._loop.call(self._engine.wakeup(tuple(tags or ())))

    # ---- the end

    def close(self) -> None:
        """Aborts what runs and frees the model; harmless when repeated."""
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- the work, on the engine's loop

    def _check_open(self) -> None:
        if not self._close.alive:
            raise ConfigError("this pipeline is closed; make another")

    def _jobs(self, prompts: Any, configs: Any, preprocess: bool, adapter: str | None) -> _Jobs:
        self._check_open()
        if adapter is not None:
            raise ConfigError(f"adapter_name is {adapter!r}; adapters are not served")
        return _Jobs(prompts, configs, preprocess)

    async def _all(self, requests: Sequence[_Wish], show: bool) -> list[Response]:
        bar = _progress(len(requests)) if show else None

        async def whole(wish: _Wish) -> Response:
            answer = Response(index=wish.index)
            async for piece in self._pieces(wish):
                answer.extend(piece)
            if bar is not None:
                bar.update(1)
            return answer

        try:
            return await _gathered([whole(wish) for wish in requests])
        finally:
            if bar is not None:
                bar.close()

    async def _merged(self, requests: Sequence[_Wish], whole: bool) -> AsyncIterator[Response]:
        """The pieces of all answers, in the order in which they come."""
        inbox: asyncio.Queue[Response | BaseException | None] = asyncio.Queue()

        async def feed(wish: _Wish) -> None:
            answer = Response(index=wish.index)
            try:
                async for piece in self._pieces(wish):
                    if whole:
                        answer.extend(piece)
                    else:
                        inbox.put_nowait(piece)
                inbox.put_nowait(answer if whole else None)
            except Exception as error:  # noqa: BLE001 - raised where the pieces are read
                inbox.put_nowait(error)

        tasks = [asyncio.ensure_future(feed(wish)) for wish in requests]
        try:
            left = len(tasks)
            while left:
                item = await inbox.get()
                if isinstance(item, BaseException):
                    raise item
                left -= item is None or whole
                if item is not None:
                    yield item
        finally:
            await _cancelled(tasks)

    async def _pieces(self, wish: _Wish) -> AsyncIterator[Response]:
        try:
            async with self._gate:
                request = await self._request(wish)
                stream = self._engine.generate(request)
                rows = Rows({n: w for n, field in ROW_NAMES.items() if (w := getattr(wish.config, field))})
                try:
                    async for chunk in stream:
                        yield response_of(rows.cut(chunk), wish.index)
                finally:
                    await stream.aclose()  # type: ignore[attr-defined]
        except RequestError as error:
            code = error.code or str(error.status)
            yield Response(finish_reason="error", error_code=code, error_message=str(error), index=wish.index)

    async def _request(self, wish: _Wish) -> TextRequest:
        encode = self._engine.codec.encode
        words = {word: await encode(word, False) for word in wish.config.bad_words or ()}
        bare = TextRequest(uuid.uuid4().hex, wish.prompt, chat=wish.chat)
        return text_request(bare, wish.config, words)

    def _turn(self, session: Session, prompt: Any, config: GenConfigs, adapter: str | None) -> Iterator[Response]:
        answer = Response()
        for piece in self.stream_infer(session.messages(prompt), None, config, True, adapter):
            answer.extend(piece)
            yield piece
        if answer.finish_reason == "error":
            # A question that was refused would have every later turn refused with it.
            session.response = answer
        else:
            session.remember(prompt, answer)


class _Wish:
    """A prompt, how to answer it, and its place among the others."""

    def __init__(self, index: int, prompt: Prompt, config: GenerationConfig, chat: bool) -> None:
        self.index, self.prompt, self.config, self.chat = index, prompt, config, chat


class _Jobs:
    def __init__(self, prompts: Any, configs: GenerationConfig | list[GenerationConfig], chat: bool) -> None:
        found = sort_prompts(prompts)
        each = per_prompt(configs, len(found.items))
        wishes = [(p, one) for p, c in zip(found.items, each, strict=True) for one in _choices(c)]
        self.single = found.single and len(wishes) == 1
        self.requests = [_Wish(i, p, c, chat) for i, (p, c) in enumerate(wishes)]


def _choices(config: GenerationConfig) -> list[GenerationConfig]:
    """`n` answers to one prompt; the seed of answer i is i more than the first's, as LMDeploy's server has it."""
    seed = config.random_seed
    return [replace(config, n=1, random_seed=None if seed is None else seed + i) for i in range(config.n)]


def _many_ids(method: str, input_ids: Any) -> list[list[int]]:
    items = sort_prompts(input_ids).items
    if not all(isinstance(item, tuple) and item and isinstance(item[0], int) for item in items):
        raise ConfigError(f"{method} takes token ids: a list of them, or a list of such lists")
    return [list(item) for item in items]  # type: ignore[arg-type]


def _generation(config: GenConfigs, options: dict[str, Any]) -> GenerationConfig | list[GenerationConfig]:
    if config is not None and options:
        raise ConfigError(f"{', '.join(sorted(options))}: say it in gen_config, which is given too")
    if config is not None:
        return config
    return generation_config(options) if options else GenerationConfig()


def _with_history(prompts: Any, sessions: Any) -> Any:
    found = sort_prompts(prompts)
    each = sessions if isinstance(sessions, list) else [sessions]
    if len(each) != len(found.items):
        raise ConfigError(f"there are {len(found.items)} prompts and {len(each)} sessions; give one for each")
    return [session.messages(item) for session, item in zip(each, found.items, strict=True)]


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total)


async def _await(opener: Opener) -> TextEngine:
    return await opener()


async def _gathered(works: list[Any]) -> list[Any]:
    """All results; where one raises, the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _shut(loop: LoopThread, engine: TextEngine) -> None:
    async def inside() -> None:
        try:
            await engine.close()
        finally:
            loop.close()

    if loop.is_here:
        # The last reference was held over there, by a coroutine: nobody may wait.
        loop.submit(inside())
        return
    try:
        loop.call(engine.close())
    finally:
        loop.close()
