"""vLLM's offline engine: `LLM.generate` on token ids. It tells of a request when it is done, so no TTFT and no ITL."""

from __future__ import annotations

import time
from typing import Any

from tokenmill.bench.peers.contract import Settings
from tokenmill.bench.timeline import Timeline
from tokenmill.bench.workload import Workload
from tokenmill.errors import ConfigError

KV = {"auto": "auto", "fp8": "fp8"}


class Peer:
    streams = False

    def load(self) -> str:
        import vllm

        self.vllm: Any = vllm
        return str(vllm.__version__)

    def start(self, settings: Settings) -> dict[str, float]:
        if settings.kv not in KV:
            raise ConfigError(f"vllm has no KV cache like {settings.kv!r}; it has {', '.join(KV)}: --quant-policy auto")
        self.llm = self.vllm.LLM(
            model=settings.model, dtype=settings.dtype, max_model_len=settings.max_model_tokens,
            gpu_memory_utilization=settings.memory_frac, max_num_seqs=settings.max_rows,
            kv_cache_dtype=KV[settings.kv], tensor_parallel_size=settings.tp, enable_prefix_caching=False,
            disable_log_stats=True, skip_tokenizer_init=True,
        )  # fmt: skip
        return {}

    def run(self, workload: Workload) -> list[Timeline]:
        wanted = [
            self.vllm.SamplingParams(
                temperature=workload.temperature, top_p=workload.top_p, max_tokens=item.new_tokens, ignore_eos=True,
                detokenize=False,
            )
            for item in workload.items
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": list(item.prompt_ids)} for item in workload.items]
        sent = time.perf_counter()
        done = self.llm.generate(prompts, wanted, use_tqdm=False)
        ended = time.perf_counter()
        counts = [len(answer.outputs[0].token_ids) for answer in done]
        pairs = zip(workload.items, counts, strict=True)
        return [Timeline(len(item.prompt_ids), sent, [(ended, count)], ended) for item, count in pairs]

    def close(self) -> None:
        del self.llm
