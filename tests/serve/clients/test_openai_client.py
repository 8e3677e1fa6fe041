"""The official `openai` client against a real server: what it sends is understood, and it
understands what it gets."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import openai
import pytest

from serve.auth import ApiKeys

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7 + 5?"}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("gates", [0, [1.0, 0.5, 0.0], "learned"])
def test_completes_with_gates(client, alone, gates):
    answer = client.completions.create(**GREEDY, extra_body={"gates": gates})
    expected = alone(PROMPT, None if gates == "learned" else gates, max_tokens=12)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.gates == list(expected.gates)
    assert answer.gates_source == ("learned" if gates == "learned" else "request")
    assert answer.usage.completion_tokens == len(expected.tokens)


def test_names_of_behaviours_and_gates_of_prompt_and_answer(
    serving, make_service, make_engine, run_alone, behaved_checkpoint
):
    alone = run_alone(behaved_checkpoint)
    with (
        serving(make_service(make_engine(behaved_checkpoint))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        (card,) = client.models.list().data
        assert [each["name"] for each in card.behaviours] == ["direct", "odd", "worked"]
        phases = {"prompt": "direct", "answer": "worked"}
        for gates in ("direct", phases, {"answer": 0.5}):
            expected = alone(PROMPT, gates, max_tokens=12)
            answer = client.completions.create(**GREEDY, extra_body={"gates": gates})
            assert answer.choices[0].text == expected.text
            assert answer.gates == list(expected.gates)
            apart = None if gates == "direct" else list(expected.answer_gates)
            assert answer.answer_gates == answer.choices[0].answer_gates == apart
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=4, extra_body={"gates": phases}
        )
        assert (answer.gates_source, answer.behaviour) == ("behaviour", "direct")
        assert (answer.answer_gates_source, answer.answer_behaviour) == ("behaviour", "worked")
        with pytest.raises(openai.BadRequestError, match='"learned", "direct", "odd", "worked"'):
            client.completions.create(**GREEDY, extra_body={"gates": "loud"})


def test_streams_the_same(client):
    options = {"extra_body": {"gates": 0.25}, "n": 2, "seed": 3}
    sampled = {**GREEDY, "temperature": 1.0, "prompt": [PROMPT, "naïve café"]}
    whole = client.completions.create(**sampled, **options)
    chunks = list(
        client.completions.create(
            **sampled, **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(chunk.gates_source == "request" for chunk in chunks)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert mine[0].gates == choice.gates == [0.25] * 6
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
    assert len({choice.text for choice in whole.choices}) == 4


def test_logprobs(client, alone):
    expected = alone(PROMPT, max_tokens=12, logprobs=True, top_logprobs=3)
    found = client.completions.create(**GREEDY, logprobs=3).choices[0].logprobs
    assert found.token_logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    for entry, top in zip(found.top_logprobs, expected.top_logprobs, strict=True):
        assert max(entry.values()) == pytest.approx(top[0][1], abs=1e-5)
        assert len(entry) == 3
    pieces = [
        choice.logprobs
        for chunk in client.completions.create(**GREEDY, logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
    ]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = list(chain.from_iterable(getattr(piece, name) for piece in pieces))
        assert streamed == getattr(found, name)


def test_echo_scores_the_prompt(client, alone):
    expected = alone(PROMPT, max_tokens=2, logprobs=True, prompt_logprobs_from=1)
    for stream in (False, True):
        answer = client.completions.create(
            **{**GREEDY, "max_tokens": 2}, echo=True, logprobs=1, stream=stream
        )
        choices = [c for chunk in (answer if stream else [answer]) for c in chunk.choices]
        assert "".join(choice.text for choice in choices) == PROMPT + expected.text
        logprobs = [choice.logprobs for choice in choices if choice.logprobs is not None]
        scores = [score for each in logprobs for score in each.token_logprobs]
        wanted = [*expected.prompt_logprobs.logprobs, *expected.logprobs]
        assert scores == pytest.approx(wanted, abs=1e-4)
        tokens = [token for each in logprobs for token in each.tokens]
        assert "".join(tokens) == PROMPT + expected.text
        offsets = [offset for each in logprobs for offset in each.text_offset]
        assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]


def test_chat(client, alone):
    prompt = "Be brief.\n\nQuestion: 7 + 5?\nAnswer:"
    expected = alone(prompt, 0.5, max_tokens=12, logprobs=True, stop=("Question:",))
    fields = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_completion_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"gates": 0.5},
    }
    answer = client.chat.completions.create(**fields)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == expected.text
    assert choice.gates == [0.5] * 6
    found = [entry.logprob for entry in choice.logprobs.content]
    assert found == pytest.approx(expected.logprobs, abs=1e-5)
    text = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert text.decode(errors="replace") == expected.text
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)

    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].gates == [0.5] * 6
    contents = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(contents) == expected.text
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == choice.logprobs.content


def test_models(client):
    (card,) = client.models.list().data
    assert client.models.retrieve("tiny") == card
    assert card.n_gates == 6


def test_errors_are_the_clients_exceptions(client):
    with pytest.raises(openai.BadRequestError, match="96 tokens") as long:
        client.completions.create(**{**GREEDY, "max_tokens": 90})
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="allowed: 1 number") as gates:
        client.completions.create(**GREEDY, extra_body={"gates": [0.5, 0.5]}, stream=True)
    assert gates.value.param == "gates"
    with pytest.raises(openai.NotFoundError, match="gpt-4") as unknown:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert unknown.value.request_id.startswith("req-")


def test_overload_is_a_rate_limit_error(serving, make_service, make_engine, make_valve, wait_until):
    engine = make_engine(max_batch=1)
    valve = make_valve(engine)
    with (
        serving(make_service(engine, max_queue=0)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.completions.create, **GREEDY)
        wait_until(lambda: engine.active == 1)
        with pytest.raises(openai.RateLimitError, match="server holds 1") as refused:
            client.completions.create(**GREEDY)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        valve.open.set()
        assert first.result().choices[0].text


def test_a_wrong_key_is_an_authentication_error(serving, make_service):
    key = "k" * 32
    with serving(make_service(), keys=ApiKeys([key])) as url:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.completions.create(**GREEDY)
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            assert client.completions.create(**GREEDY).choices[0].text


def test_sixty_four_gate_vectors_at_once(live, alone):
    rows = [[i / 63, 1 - i / 63, (i * 7 % 64) / 63] for i in range(64)]
    prompts = [f"Question: Tom has {i} apples" for i in range(64)]

    async def run() -> list:
        async with openai.AsyncOpenAI(
            base_url=f"{live}/v1", api_key="none", max_retries=0
        ) as client:
            calls = [
                client.completions.create(
                    **{**GREEDY, "prompt": prompt, "max_tokens": 8}, extra_body={"gates": row}
                )
                for prompt, row in zip(prompts, rows, strict=True)
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    for answer, prompt, row in zip(answers, prompts, rows, strict=True):
        expected = alone(prompt, row, max_tokens=8)
        assert answer.choices[0].text == expected.text
        assert answer.gates == list(expected.gates)
    assert len({answer.choices[0].text for answer in answers}) > 32
