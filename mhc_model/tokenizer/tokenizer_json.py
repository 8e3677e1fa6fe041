"""The `tokenizer.json` of a rank table: the same ids through the `tokenizers` library.

tiktoken merges the neighbours whose joined bytes have the lowest rank; `tokenizers` wants the list
of merges, that is, the two parts of every token. In whatever text a token is formed, no merge
crosses its borders before, so the bytes within go through the same merges as when they stand alone:
each token has one pair of parts, found by merging its own bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE


def fast_tokenizer_json(tokens: Sequence[bytes], pattern: str, special: str) -> str:
    """JSON of a `tokenizers.Tokenizer`.

    Args:
        tokens: bytes of every token but the special one, in order of rank.
        pattern: regular expression of the pieces.
        special: name of the special token; its id is len(tokens).
    """
    alphabet = byte_alphabet()
    names = ["".join(alphabet[byte] for byte in token) for token in tokens]
    vocabulary = {name: rank for rank, name in enumerate(names)}
    merges = [(names[left], names[right]) for left, right in find_merges(tokens)]
    # ignore_merges: a piece that is a token is that token even if no merge leads to it, as in
    # tiktoken.
    fast = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(special, normalized=False, special=True)])
    return fast.to_str()


def find_merges(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """The parts of every token that merging can reach, as pairs of ranks, in order of rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        parts = _last_parts(token, ranks)
        if parts is not None:
            merges.append(parts)
    return merges


def _last_parts(token: bytes, ranks: dict[bytes, int]) -> tuple[int, int] | None:
    """Ranks of the two parts that merge into `token`; None for a byte or an unreachable token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, best_rank = -1, len(ranks)
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], best_rank)
            if rank < best_rank:
                best, best_rank = i, rank
        if best < 0:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return (ranks[parts[0]], ranks[parts[1]]) if len(parts) == 2 else None


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, by which `tokenizers` names tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    mapping = {byte: chr(byte) for byte in printable}
    mapping |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [mapping[byte] for byte in range(256)]
