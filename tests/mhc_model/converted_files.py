"""Tokenizer files as a converted model has them, and texts to try them on."""

from __future__ import annotations

import json

from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from mhc_model.tokenizer import Tokenizer

CORPUS = ["Question: Tom has 12 apples and buys 7 more.\nAnswer: 19\n", "naïve 北京 🙂  \n\n\tx"]
TEXTS = [*CORPUS, "1234567890", "   a\n\n\n  b\t", "e\u0301 १२ 🙂🙂", "", "<|im_end|> is text"]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PADDED = 336
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def converted_files() -> dict[str, bytes]:
    """As Qwen3's: several special tokens, an added one that is not special, no beginning."""
    fast = Fast.from_str(Tokenizer.train(CORPUS, vocab_size=300).files["tokenizer.json"].decode())
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    fast.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": TEMPLATE,
    }
    return {
        "tokenizer.json": fast.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
