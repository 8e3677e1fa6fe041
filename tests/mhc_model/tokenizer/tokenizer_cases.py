"""Texts on which tokenizers go wrong."""

from __future__ import annotations

from hypothesis import strategies as st

CORPUS = [
    "Question: Tom has 12 apples and buys 7 more. How many apples has he?\nAnswer: 19\n",
    "It's the naïve café's 3rd visit;   he'll say “no” — 北京 北京 🙂🙂\r\n\t\tindented\n\n\n",
    "aaaa aaaaaaa abababab  babab xyxyxyx ....... !!!! ==== 1000000",
] * 4

# Where splitting and merging go wrong: digits, runs of blanks, contractions, odd scripts, specials.
PIECES = (
    "12|7| |  |\n|\r\n|\t|'s|'LL|é|e\u0301|北京|🙂|ſ|\u2028|apples|abab|aaaaa|....|\x00|\u00a0|Ⅷ|१२"
)
pieces = st.sampled_from([*PIECES.split("|"), "<|bos|>", "<|endoftext|>"])
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=20).map("".join))
