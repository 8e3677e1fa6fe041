"""The tokenizer of a GGUF file as a tokenizer.json.

What the file leaves out is as llama.cpp takes it (src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from mhc_model.conversion.gguf_metadata import Metadata
from mhc_model.errors import CheckpointError
from mhc_model.tokenizer import CONFIG_FILE, FAST_FILE, GPT2_PATTERN, FastTokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Split:
    """How text becomes the pieces within which bytes merge.

    Attributes:
        patterns: each cuts what those before it left.
        add_bos: whether texts begin with a token where the file does not say.
        ignore_merges: a piece that is a token is that token.
        normal_form: NFC comes first.
    """

    patterns: tuple[str, ...]
    add_bos: bool = False
    ignore_merges: bool = False
    normal_form: bool = False


GPT2, SMOLLM = Split((GPT2_PATTERN,)), Split((r"\p{N}", GPT2_PATTERN))
LLAMA3 = Split((LLAMA3_PATTERN,), add_bos=True, ignore_merges=True)
QWEN2 = Split((QWEN2_PATTERN,), normal_form=True)
# Of files that do not name one.
DEFAULT = Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"))
# By tokenizer.ggml.pre; llama.cpp has several names for one.
SPLITS = {
    "default": DEFAULT,
    "smollm": SMOLLM,
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "roberta-bpe"), GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1"), LLAMA3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez"), QWEN2),
}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types
# bos and eos of files that do not name them: Falcon's <|endoftext|>.
DEFAULT_ID = 11
# Tokens that end a text by their names, beside those that the file names.
END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
)


def gguf_tokenizer(metadata: Metadata, vocab_size: int) -> FastTokenizer | None:
    """The tokenizer in the metadata; None if there is none.

    Args:
        metadata: of the file.
        vocab_size: of the model.

    Raises:
        CheckpointError: if it is no byte-level BPE, splits text in a way that is not known, or its
            entries do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model", str)
    if kind in (None, "none", "no_vocab"):
        return None
    name = metadata.get("tokenizer.ggml.pre", str) or "default"
    if kind != "gpt2" or name not in SPLITS:
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.model is {kind!r} with tokenizer.ggml.pre "
            f"{name!r}; supported: 'gpt2' with {', '.join(map(repr, SPLITS))}"
        )
    split = SPLITS[name]
    names, types = _tokens(metadata, vocab_size)
    begins = metadata.get("tokenizer.ggml.add_bos_token", bool)
    begins = split.add_bos if begins is None else begins
    bos, ends = _bos(metadata, types, begins), _ends(metadata, names, types)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", bool)),
        "eos_token": names[ends[0]],
    }
    if bos is not None:
        config["bos_token"] = names[bos]
    padding = _id(metadata, "padding", len(names))
    if padding is not None:
        config["pad_token"] = names[padding]
    template = metadata.get("tokenizer.chat_template", str)
    if template is not None:
        config["chat_template"] = template
    files = {
        FAST_FILE: _tokenizer_json(metadata, names, types, split).encode(),
        CONFIG_FILE: json.dumps(config, indent=2).encode(),
    }
    return FastTokenizer.from_files(files, vocab_size, ends, metadata.source)


def _tokens(metadata: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """Names and types by id."""
    names = metadata.listed("tokenizer.ggml.tokens", str)
    if not names:
        raise CheckpointError(f"{metadata.source} has no entry 'tokenizer.ggml.tokens'")
    if len(names) > vocab_size:
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.tokens has {len(names)} entries, the model only "
            f"{vocab_size} ids"
        )
    names = [name or f"[EMPTY_{i}]" for i, name in enumerate(names)]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{metadata.source}: tokenizer.ggml.tokens has a token twice")
    types = metadata.listed("tokenizer.ggml.token_type", int)
    types = [NORMAL] * len(names) if types is None else list(types)
    if len(types) != len(names):
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.token_type has {len(types)} entries for "
            f"{len(names)} tokens"
        )
    for i, name in enumerate(names):
        if name in END_NAMES:
            types[i] = CONTROL  # whatever the file says
    return names, types


def _id(metadata: Metadata, name: str, count: int) -> int | None:
    """The token that the file names; one that it does not have counts as not named."""
    token = metadata.get(f"tokenizer.ggml.{name}_token_id", int)
    return None if token is None or not 0 <= token < count else token


def _falcons(types: Sequence[int]) -> int | None:
    """llama.cpp's token where none is named, if it can be meant."""
    return DEFAULT_ID if len(types) > DEFAULT_ID and types[DEFAULT_ID] == CONTROL else None


def _bos(metadata: Metadata, types: Sequence[int], begins: bool) -> int | None:
    token = _id(metadata, "bos", len(types))
    token = _falcons(types) if token is None else token
    if begins and token is None:
        raise CheckpointError(
            f"{metadata.source}: texts begin with a token (add_bos_token), but "
            f"tokenizer.ggml.bos_token_id does not name it; llama.cpp would take token "
            f"{DEFAULT_ID}, which is ordinary text here"
        )
    return token


def _ends(metadata: Metadata, names: Sequence[str], types: Sequence[int]) -> list[int]:
    """The tokens that end a text, the file's eos first."""
    eos = _id(metadata, "eos", len(names))
    eos = _falcons(types) if eos is None else eos
    named = [_id(metadata, kind, len(names)) for kind in ("eot", "eom")]
    by_name = [i for i, name in enumerate(names) if name in END_NAMES]
    ends = [i for i in (eos, *named, *by_name) if i is not None]
    if not ends:
        raise CheckpointError(
            f"{metadata.source} names no token that ends a text (tokenizer.ggml.eos_token_id)"
        )
    return list(dict.fromkeys(ends))


def _tokenizer_json(
    metadata: Metadata, names: list[str], types: Sequence[int], split: Split
) -> str:
    used = {name: i for i, name in enumerate(names) if types[i] in (NORMAL, CONTROL, USER_DEFINED)}
    lines = metadata.listed("tokenizer.ggml.merges", str)
    if lines is None:
        raise CheckpointError(f"{metadata.source} has no entry 'tokenizer.ggml.merges'")
    merges: list[Any] = [tuple(merge.split(" ", 1)) for merge in lines]
    bad = next((line for line, pair in zip(lines, merges, strict=True) if len(pair) != 2), None)
    if bad is not None:
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.merges has {bad!r:.100}; each must be two tokens "
            f"with a space between"
        )
    try:
        fast = Tokenizer(BPE(used, merges, ignore_merges=split.ignore_merges))
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise CheckpointError(f"{metadata.source}: tokenizer.ggml.merges: {error}") from None
    if split.normal_form:
        fast.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in split.patterns]
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([*pieces, by_bytes])
    fast.decoder = decoders.ByteLevel()
    added = [
        AddedToken(name, normalized=False, special=types[i] == CONTROL)
        for name, i in used.items()
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    fast.add_special_tokens([token for token in added if token.special])
    fast.add_tokens([token for token in added if not token.special])
    return fast.to_str()
