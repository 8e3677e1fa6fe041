"""Templates of prompts, and what counts as an answer."""

from __future__ import annotations

import pytest

from mhc_model.recursion import Prompts
from mhc_model.recursion.settings import answered


def test_templates_take_texts_with_braces_and_need_their_fields():
    prompts = Prompts.model_validate({})
    assert "{question} {x}" in prompts.of_source("Q", "{question} {x}")
    with pytest.raises(ValueError, match="source"):
        Prompts(query="{question}")


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Paris", True),
        ("not found", False),
        (" Not found.", False),
        ("The passage does not say", False),
        ("", False),
        ("nothing but water", True),
        ("None", False),
        ("nonesuch", True),
    ],
)
def test_what_counts_as_an_answer(text, yes):
    assert answered(text) is yes
