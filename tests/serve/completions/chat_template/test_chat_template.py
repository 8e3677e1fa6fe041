"""Conversations become prompts: by the default, a checkpoint's or an operator's template."""

from __future__ import annotations

import json

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from mhc_model import ConfigError
from serve.completions import ChatTemplate
from serve.completions.chat_template import ChatOptions

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


MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def own(make_fast):
    return make_fast(*MARKS, bos_token=None, eos_token="<|im_end|>")


def test_a_template_with_tokens_of_its_own(own):
    """As instruction-tuned models have: one begins a message, another ends it, text makes none."""
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    start, end = (own.special_tokens[mark] for mark in MARKS)
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


PRINTS_ALL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n<|{{ m.name }}|>{{ m.name | trim }}"
    "{{ m.content | lower }}{{ m.content }}<|im_end|>{{ m | tojson }}{% endfor %}"
    "{{ note }}{{ tools | tojson }}{% for d in documents or [] %}{{ d.title }}{{ d.text }}"
    "{% for key in d %}{{ key | upper }}{% endfor %}{% endfor %}"
)
# Whole, in another case, in parts that only meet in the template, and as the middle of one.
NASTY = ["<|im_end|>", "<|IM_END|>", " a<|im_", "end|> b", "im_end", "|>", "<", "e\n<|im_start|>"]


@pytest.mark.parametrize("first", NASTY)
@pytest.mark.parametrize("second", NASTY)
def test_nothing_that_a_caller_wrote_is_a_control_token(own, first, second):
    """In no field that a template may print, and not by being put together in it."""
    template = ChatTemplate(PRINTS_ALL)
    message = {"role": "user", "name": first, "content": second}
    options = ChatOptions(
        tools=[{"type": "function", "function": {"name": first, second: [second]}}],
        documents=[{"title": first, "text": second, first: ""}],
        variables={"note": first},
    )
    ids = template.prompt([message], own, options).tokens
    control = [token for token in ids if token in own.special_tokens.values()]
    assert control == [own.special_tokens[mark] for mark in MARKS]
    plain = ChatTemplate(PRINTS_ALL)._template.render(
        messages=[message], tools=options.tools, documents=options.documents, note=first
    )
    written = own.decode(ids)
    assert written.startswith(f"user\n<|{first}|>{first.strip()}")
    assert (
        written.lower()
        == plain.replace("<|im_start|>", "", 1)
        .replace("<|im_end|>" + '{"role"', '{"role"', 1)
        .lower()
    )


def test_templates_for_training_and_what_is_not_given(tokenizer):
    """transformers knows `generation` blocks, and gives tools and documents as None."""
    source = (
        "{% if tools is none and documents is none %}none {% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}"
        "{% else %}{{ m.content }}|{% endif %}{% endfor %}"
        "{% if thinking is defined and thinking %}<think>{% endif %}"
    )
    template = ChatTemplate(source)
    assert tokenizer.decode(template.encode(MESSAGES, tokenizer)) == (
        "none Be brief. |7 + 5?| 12\nAnd 1?|"
    )
    options = ChatOptions(tools=[{"a": 1}], variables={"thinking": True})
    ids = template.prompt(MESSAGES[1:2], tokenizer, options).tokens
    assert tokenizer.decode(ids) == "7 + 5?|<think>"


@pytest.mark.parametrize("ending", ["Because 7", "Because 7 ", "Because\n", ""])
@pytest.mark.parametrize("trims", [True, False])
def test_the_last_message_is_continued_as_transformers_does_it(own, ending, trims):
    """Its end is that of the prompt, whatever the template writes behind it."""
    content = "m.content | trim" if trims else "m.content"
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [{"role": "user", "content": "7 <"}, {"role": "assistant", "content": ending}]
    rendered, _ = render_jinja_template(
        [messages], chat_template=source, continue_final_message=True, add_generation_prompt=False
    )
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    prompt = ChatTemplate(source).prompt(messages, own, options)
    assert prompt.tokens == own.encode_marked(rendered[0])
    assert not prompt.opens_text
    silent = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(TemplateError, match="continue_final_message"):
        silent.prompt(messages, own, options)


def test_a_start_only_where_it_is_wanted(tokenizer):
    template = ChatTemplate("{{ messages[0].content }}")
    for wanted, start in ((None, [tokenizer.bos_id]), (True, [tokenizer.bos_id]), (False, [])):
        options = ChatOptions(add_special_tokens=wanted)
        found = template.prompt(MESSAGES[1:2], tokenizer, options).tokens
        assert found == [*start, *tokenizer.encode("7 + 5?")]


def test_variables_that_a_template_cannot_take_are_the_callers_mistake(
    make_service, call, error_of
):
    template = ChatTemplate("{{ messages[0].content }}{{ 1 + (more or 0) }}")
    service = make_service(chat_template=template)
    for more, status in ((2, 200), ("a", 400), ([], 200), ({"a": 1}, 400)):
        body = {"messages": MESSAGES[1:2], "max_tokens": 1, "chat_template_kwargs": {"more": more}}
        response = call("POST", "/v1/chat/completions", service, json=body)
        assert response.status_code == status, response.text
        if status == 400:
            assert "chat template refuses" in error_of(response, 400)["message"]


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
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({**fields, "chat_template": several}))
    assert text() == "D"
    config.write_text(json.dumps({**fields, "chat_template": several[:1]}))
    with pytest.raises(ConfigError, match="no text but list"):
        text()
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
