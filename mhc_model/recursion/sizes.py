"""Passages of a size that the model can read."""

from __future__ import annotations

from mhc_model.recursion.model import LanguageModel
from mhc_model.recursion.search.index import TextIndex
from mhc_model.recursion.settings import SessionSettings

PASSAGE_CHARS = 960
_SAMPLE = 20_000  # characters from which the characters of a token are estimated
_TEXT_SHARE = 0.6  # of a prompt: the rest is the question and what is asked of the model


def index_for(
    text: str, model: LanguageModel, settings: SessionSettings, passage_chars: int = PASSAGE_CHARS
) -> TextIndex:
    """An index whose passages fit into the model's context with a question and an answer.

    They overlap by a quarter. A small context makes them smaller than `passage_chars`.

    Raises:
        SessionError: for an empty text.
    """
    sample = text[:_SAMPLE]
    per_token = len(sample) / max(1, model.count_tokens(sample))
    room = _TEXT_SHARE * (model.context - settings.max_tokens)
    size = max(8, min(passage_chars, int(per_token * room)))
    return TextIndex(text, size, size // 4, model.embedder)
