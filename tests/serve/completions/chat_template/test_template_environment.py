"""Chat templates that take what they can get: refused before they are used, and while they are."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from jinja2 import TemplateError

from mhc_model import ConfigError
from mhc_model.tokenizer import Tokenizer
from serve.completions import ChatTemplate

HOSTILE = {
    "a long range": "{% for i in range(10**9) %}a{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long list": "{{ [0] * 10**10 }}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a centred text": "{{ 'a' | center(10**10) }}",
    "an adjusted text": "{{ 'a'.ljust(10**10) }}",
    "a formatted number": "{{ '%1000000000d' % 1 }}",
    "a formatted text": "{{ '{:>10000000000}'.format(1) }}",
    "a filled batch": "{{ ['a'] | batch(10**10, 'b') | list }}",
    "an indented JSON": "{{ messages | tojson(indent=10**10) }}",
    "a text that doubles": (
        "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    ),
    "a replacement": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "an endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "loops over one list": (
        "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    ),
    "in the third turn only": "{% if messages | length > 2 %}{{ 'a' * 10**10 }}{% endif %}a",
    "deep brackets": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "a long answer": "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}",
    "a long template": "a" * (2**20 + 1),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_it_is_refused_in_words(what: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(HOSTILE[what])
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(ConfigError, match=r"the chat template does not render a user message: ."):
        ChatTemplate.load(None, tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024  # KiB
    assert after.ru_utime - before.ru_utime < 2


@pytest.mark.parametrize(
    "expression",
    [
        "'a' * (10 ** content)",
        "'a'.center(10 ** content)",
        "10 ** (10 ** content)",
        "[1, 2] * 10 ** 8",
    ],
)
def test_what_a_conversation_sets_off_is_bounded(expression: str) -> None:
    source = "{% set content = messages[0].content | length %}{% if content > 6 %}{{ "
    template = ChatTemplate(source + expression + " }}{% endif %}a")
    tokenizer = Tokenizer.train(["abc"], vocab_size=257)
    assert template.encode([{"role": "user", "content": "z"}], tokenizer)
    with pytest.raises(TemplateError):
        template.encode([{"role": "user", "content": "z" * 10}], tokenizer)


def test_a_pipe_is_no_template(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(ConfigError, match="no regular file"):
        ChatTemplate.load(None, tmp_path)
    with pytest.raises(ConfigError, match="no regular file"):
        ChatTemplate.load(tmp_path / "chat_template.jinja", tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="nests too deep"):
        ChatTemplate.load(None, tmp_path)
