"""Build the demo model's tokenizer: BPE with byte fallback and the special tokens of InternLM2.

Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3-258 the bytes, then characters and merges, and last, in InternLM2's order,
`<|plugin|>`, `<|interpreter|>`, `<|action_end|>`, `<|action_start|>`, `<|im_end|>`, `<|im_start|>`. No normalizer and
no dummy prefix, so any Unicode text survives a round trip. Digits and Chinese characters stand alone; a space joins a
following common word but never another one, so that a name has the same pieces after a space, a quote or a bracket:
copying is then one-to-one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
STOPS = ("</s>", "<|im_end|>", "<|action_end|>")
SPECIALS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
CONTROL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
COMMON = (
    "the a an of to and in is it that this for with as be are on by from or at not was you I my your me can if will "
    "all which its has have one two may used when object value called So What name like live call write am they "
    "their into but there who upon time little lived day found big through wanted take home too heavy carry came by "
    "said help together then them soon done became good friends everything shared heard could bring back so over "
    "way met lost helped gave half food under old tree went sun shining flowers opened happily ever after never "
    "morning sang birds talked always because any did not shine more every once would more than anyone easy very "
    "small model language"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['name'] is defined and message['name'] %}{{ ' name=' + message['name'] }}{% endif %}"
    "{{ '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def split_pattern() -> str:
    common = "|".join(COMMON.split())
    marks = rf"[^\sA-Za-z\p{{N}}\p{{Han}}]+(?: [\"\[{{]+| (?=[A-Za-z0-9])(?!(?:{common})(?![A-Za-z])))?"
    return rf" (?:{common})(?![A-Za-z])| [-+=] (?=[0-9])|[A-Za-z]+|\p{{N}}|\p{{Han}}|{marks}|\n+| +|\s+"


def train(texts: Iterable[str]) -> Tokenizer:
    """Learn merges from `texts` and assemble the final tokenizer of exactly VOCAB_SIZE ids."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(split_pattern()), "isolated")
    size = VOCAB_SIZE - len(SPECIALS)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*CONTROL, *BYTES], show_progress=False, max_token_length=16
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    if len(learnt["vocab"]) != size:
        raise ValueError(f"the texts gave {len(learnt['vocab'])} pieces, the vocabulary needs {size}: use more text")
    return assemble(learnt["vocab"], [tuple(pair) for pair in learnt["merges"]])


def assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    out = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    out.pre_tokenizer = pre_tokenizers.Split(Regex(split_pattern()), "isolated")
    out.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    out.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*CONTROL, *SPECIALS)])
    out.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return out


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer_config.json of the folder."""
    added = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t in (*CONTROL, *SPECIALS)
    }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(reversed(SPECIALS)),
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "decode_with_prefix_space": False,
        "eos_token": "</s>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
