"""OpenAI's responses: their shape, the order of their choices, and the same in chunks."""

from __future__ import annotations

from mhc_model.checkpoint import checkpoint_hash

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}


def test_response_has_openai_shape(post, checkpoint, tokenizer):
    answer = post(**GREEDY, user="someone").json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["checkpoint"] == checkpoint_hash(checkpoint)
    assert answer["choices"][0]["index"] == 0
    assert answer["choices"][0]["logprobs"] is None
    prompt_tokens = len(tokenizer.encode(PROMPT, bos=True))
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": prompt_tokens + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_samples_of_several_prompts_are_ordered_by_prompt(post):
    fields = {"max_tokens": 6, "temperature": 1.0, "seed": 9}
    both = post(prompt=[PROMPT, "naïve"], n=3, **fields).json()["choices"]
    assert [choice["index"] for choice in both] == list(range(6))
    for start, prompt in ((0, PROMPT), (3, "naïve")):
        alone = post(prompt=prompt, n=3, best_of=3, **fields).json()["choices"]
        assert [c["text"] for c in alone] == [c["text"] for c in both[start : start + 3]]


def test_an_echo_without_tokens(post, events_of):
    for logprobs in (None, 0, 2):
        fields = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": logprobs}
        whole = post(**fields).json()
        assert whole["choices"][0]["text"] == PROMPT
        assert whole["usage"]["completion_tokens"] == 0
        chunks = events_of(post(**fields, stream=True))[:-1]
        choices = [chunk["choices"][0] for chunk in chunks]
        assert "".join(choice["text"] for choice in choices) == PROMPT
        found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        wanted = whole["choices"][0]["logprobs"]
        assert found == ([wanted] if wanted else [])
