"""Conversations become prompts: by the default, a checkpoint's or an operator's template."""

from __future__ import annotations

import json

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from mhc_model import ConfigError
from mhc_model.tokenizer import FastTokenizer
from serve.completions import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "7 + 5?"},
    {"role": "assistant", "content": " 12\n"},
    {"role": "user", "content": "And 1?"},
]
CHATML = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_default_is_questions_and_answers(tokenizer):
    ids = ChatTemplate.default().encode(MESSAGES, tokenizer)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids) == (
        "Be brief.\n\nQuestion: 7 + 5?\nAnswer: 12\n\nQuestion: And 1?\nAnswer:"
    )
    assert ids == tokenizer.encode(tokenizer.decode(ids), bos=True)


def test_a_template_with_tokens_of_its_own(tokenizer):
    """As instruction-tuned models have: one begins a message, another ends it, text makes none."""
    fast = Fast.from_str(tokenizer.files["tokenizer.json"].decode())
    marks = ["<|im_start|>", "<|im_end|>"]
    fast.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    config = {"bos_token": None, "eos_token": "<|im_end|>"}
    files = {
        "tokenizer.json": fast.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    own = FastTokenizer.from_files(files)
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    start, end = (own.special_tokens[mark] for mark in marks)
    ids = template.encode([{"role": "user", "content": "a<|im_end|>b"}], own)
    assert ids == [
        start,
        *own.encode("user\na<|im_end|>b"),
        end,
        *own.encode("\n"),
        start,
        *own.encode("assistant\n"),
    ]
    assert ids.count(end) == 1


def test_special_tokens_come_from_the_template_only(tokenizer):
    special = tokenizer.special
    messages = [{"role": "user", "content": f"say {special}!"}]
    ids = ChatTemplate(CHATML).encode(messages, tokenizer)
    assert [place for place, token in enumerate(ids) if token == tokenizer.bos_id] == [
        0,
        len(ids) - 1 - len(tokenizer.encode("\n<assistant>")),
    ]
    assert tokenizer.decode(ids) == f"<user>say {special}!\n<assistant>"


def test_where_a_template_comes_from(tmp_path, tokenizer):
    def text(path=None) -> str:
        template = ChatTemplate.load(path, tmp_path)
        return tokenizer.decode(template.encode(MESSAGES[1:2], tokenizer))

    tokenizer.save(tmp_path)
    assert text() == "Question: 7 + 5?\nAnswer:"
    assert ChatTemplate.load(None, tmp_path).stop == ("Question:",)
    config = tmp_path / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "chat_template": "C{{ messages[0].content }}"}))
    assert text() == "C7 + 5?"
    assert ChatTemplate.load(None, tmp_path).stop == ()
    (tmp_path / "chat_template.jinja").write_text("J{{ messages[0].content }}")
    assert text() == "J7 + 5?"
    (tmp_path / "mine").write_text("M{{ messages[0].content | tojson }}")
    assert text(tmp_path / "mine") == 'M"7 + 5?"'


@pytest.mark.parametrize(
    "source",
    ["{% for", "{{ nothing.at.all }}", "{{ messages.__class__.__mro__ }}", "{{ 1 + 'a' }}"],
)
def test_broken_templates_are_refused_when_loaded(source, tmp_path):
    (tmp_path / "template").write_text(source)
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate.load(tmp_path / "template", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate.load(tmp_path / "none", tmp_path)


def test_a_template_may_refuse_messages(tokenizer, make_service, call):
    template = ChatTemplate(
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    with pytest.raises(TemplateError, match="one turn only"):
        template.encode(MESSAGES, tokenizer)
    response = call(
        "POST",
        "/v1/chat/completions",
        make_service(chat_template=template),
        json={"messages": MESSAGES, "max_tokens": 2},
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
    assert "one turn only" in response.json()["error"]["message"]
