"""From text to terms: words, lower case, without the commonest endings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# Chinese, Japanese and Korean are written without spaces: each character is a term.
_UNSPACED = "぀-ヿ㐀-䶿一-鿿가-힯豈-﫿"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)?")
_MAX_TERM = 64  # characters; longer runs are no words, and must not fill the index

_STOP_WORDS = (
    "a an and are as at be been by did do does for from had has have he her his how i if in into "
    "is it its me my no not of on or our she so that the their them then there they this to was "
    "we were what when where which who whom whose why will with would you your"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


def words(text: str) -> Iterator[tuple[str, int]]:
    """Each word of the text in lower case, and where it starts."""
    for match in _WORD.finditer(text):
        yield match.group()[:_MAX_TERM].lower(), match.start()


def query_terms(query: str) -> dict[str, str]:
    """Term -> the word it comes from; without stop words, unless there is nothing else."""
    found = [word for word, _ in words(query)]
    telling = [word for word in found if word not in STOP_WORDS]
    return {stem(word): word for word in telling or found}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Takes off endings of English inflection: hides, hiding and hid(e) meet, as do key and keys.

    It is light on purpose: a wrong union of two words costs more than a missed one.
    """
    word = re.sub(r"['’](s|re|ve|ll|d|m)?$", "", word)
    if len(word) <= 3 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ingly", "edly", "ment", "ing", "ed", "ly"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and re.search("[aeiouy]", rest):
            word = rest
            if ending not in ("ment", "ly") and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]  # planned -> plan
            break
    if word.endswith("ied"):
        word = word[:-3] + "y"
    if word.endswith("i") or (word.endswith("y") and len(word) > 3):
        word = word[:-1] + "i"
    return word[:-1] if word.endswith("e") and len(word) > 3 else word
