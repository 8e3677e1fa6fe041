"""What bodies of chat completions may hold; what else they hold is named."""

from __future__ import annotations

import pytest

BAD = {
    "messages": [None, [], "a", [1], [{"role": "user"}], [{"role": "tool", "content": "a"}]],
    "max_tokens": [0, 1.5, "1"],
    "max_completion_tokens": [0, "1"],
    "logprobs": [1, "true"],
    "top_logprobs": [1, -1, 21],
    "response_format": ["text", {"type": "json_schema"}],
    "tools": [{}, [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["required", {"type": "function"}],
    "chat_template_kwargs": [[], {"messages": []}, {"tools": 1}],
    "documents": [{}, ["a"]],
    "echo": [True],
}
BAD["messages"] += [[{"role": role, "content": None}] for role in ("user", "system", "developer")]
BAD["messages"] += [
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": "x"}],
]
BAD["messages"] += [
    [{"role": "user", "content": content}]
    for content in (1, [], [{"type": "image_url", "image_url": {"url": ""}}], [{"text": "a"}])
]
BAD["messages"] += [[{"role": "user", "content": "a", "x": 1}], [{"role": "user"}] * 2000]


@pytest.mark.parametrize("field", BAD)
def test_bad_fields_are_named(chat, field):
    for value in BAD[field]:
        response = chat(**{field: value})
        assert response.status_code == 400, value
        error = response.json()["error"]
        assert error["param"] == field, value
        assert field in error["message"]


def test_text_parts_are_lines_and_nulls_are_nothing(chat):
    parts = [{"type": "text", "text": "7 + 5?"}, {"type": "text", "text": "Quick."}]
    one = chat(messages=[{"role": "user", "content": "7 + 5?\nQuick."}], max_tokens=4).json()
    message = {"role": "user", "content": parts, "name": None, "tool_calls": None}
    other = chat(messages=[message], max_completion_tokens=4, tools=None, stop=None).json()
    assert one["choices"] == other["choices"]
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


def test_what_clients_send_along_and_send_back(chat):
    """A developer is the system; an answer's message is one of a conversation as it is."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "7 + 5?"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "And?"},
    ]
    one = chat(messages=turns, max_tokens=4).json()
    turns[0] = {"role": "developer", "content": "Be brief."}
    turns[2] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "tool_calls": [],
        "audio": None,
        "function_call": None,
    }
    other = chat(
        messages=turns,
        max_tokens=4,
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        functions=[],
        modalities=["text"],
        verbosity="low",
        reasoning_effort="low",
        stream_options=None,
    ).json()
    assert one["choices"] == other["choices"]
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
