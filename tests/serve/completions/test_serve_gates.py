"""Behaviours by name, gates of prompt and answer apart, the policy in either: what the engine gets
and what answers, streams and the log say."""

from __future__ import annotations

import asyncio

import pytest
import torch

from mhc_model.gates import gates_hash

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
MEANT = {
    "direct": [0.15] * 6,
    "odd": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0],
    "worked": [0.85, 0.85, 0.3, 0.3, 0.5, 0.5],
}
LABELS = ("gates_source", "behaviour", "answer_gates_source", "answer_behaviour")


def labels(answer: dict) -> tuple[str | None, ...]:
    return tuple(answer[name] for name in LABELS)


@pytest.fixture
def service(make_service, make_engine, behaved_checkpoint):
    return make_service(make_engine(behaved_checkpoint))


@pytest.fixture
def behaved_alone(run_alone, behaved_checkpoint):
    """`behaved_alone(prompt, gates, **sampling)`: a lone run of the model with behaviours."""
    return run_alone(behaved_checkpoint)


@pytest.mark.parametrize("name", MEANT)
def test_a_name_stands_for_its_gates(post, service, behaved_alone, name):
    answer = post(service, **GREEDY, gates=name).json()
    expected = behaved_alone(PROMPT, MEANT[name], max_tokens=12)
    assert answer["choices"][0]["text"] == expected.text
    assert answer["gates"] == answer["choices"][0]["gates"] == list(expected.gates)
    assert labels(answer) == ("behaviour", name, None, None)
    assert answer["answer_gates"] is answer["choices"][0]["answer_gates"] is None


@pytest.mark.parametrize(
    ("gates", "named"),
    [
        ({"prompt": "direct", "answer": "worked"}, ("behaviour", "direct", "behaviour", "worked")),
        ({"prompt": 0.25, "answer": "odd"}, ("request", None, "behaviour", "odd")),
        ({"prompt": "odd", "answer": [1, 0, 1]}, ("behaviour", "odd", "request", None)),
        ({"answer": 1.0}, ("learned", None, "request", None)),
        ({"prompt": 0}, ("request", None, "learned", None)),
        ({"prompt": "learned", "answer": "direct"}, ("learned", None, "behaviour", "direct")),
        ({"prompt": "odd", "answer": None}, ("behaviour", "odd", "learned", None)),
    ],
)
def test_prompt_and_answer_may_differ(post, service, behaved_alone, gates, named):
    answer = post(service, **GREEDY, gates=gates).json()
    expected = behaved_alone(PROMPT, gates, max_tokens=12)
    assert answer["choices"][0]["text"] == expected.text
    assert answer["gates"] == answer["choices"][0]["gates"] == list(expected.gates)
    assert answer["answer_gates"] == list(expected.answer_gates)
    assert answer["choices"][0]["answer_gates"] == list(expected.answer_gates)
    assert labels(answer) == named


def test_each_phase_has_an_effect(post, service):
    given = ["direct", "worked", {"prompt": "direct", "answer": "worked"}]
    given.append({"prompt": "worked", "answer": "direct"})
    texts = {post(service, **GREEDY, gates=gates).json()["choices"][0]["text"] for gates in given}
    assert len(texts) == 4


def test_phases_with_the_same_gates_are_one(post, service):
    for gates in ({"prompt": "direct", "answer": "direct"}, {"prompt": "direct", "answer": 0.15}):
        answer = post(service, **GREEDY, gates=gates).json()
        assert labels(answer) == ("behaviour", "direct", None, None)
        assert answer["answer_gates"] is None


def test_a_policy_for_both_phases(
    post, call, make_service, make_engine, make_policy, behaved_checkpoint, behaved_alone
):
    policy = make_policy(behaved_checkpoint, action_space="prompt_and_answer")
    engine = make_engine(behaved_checkpoint)
    prompts = [[1, 2, 3], [40, 50]]
    rows = policy.gates_for_prompts(engine.model, prompts)
    service = make_service(engine, policy=policy)
    answer = post(service, **{**GREEDY, "prompt": prompts}, gates="policy").json()
    assert labels(answer) == ("policy", None, "policy", None)
    assert answer["gates"] is answer["answer_gates"] is None  # each prompt has its own
    for choice, prompt, row in zip(answer["choices"], prompts, rows, strict=True):
        assert choice["gates"] == pytest.approx(row[0].tolist(), abs=1e-6)
        assert choice["answer_gates"] == pytest.approx(row[1].tolist(), abs=1e-6)
        assert choice["text"] == behaved_alone(prompt, row, max_tokens=12).text
    body = {"prompt": prompts[0], "gates": "policy"}
    routing = call("POST", "/v1/routing", service, json=body).json()
    assert routing["gates"] == answer["choices"][0]["gates"]


@pytest.mark.parametrize("space", ["per_layer", "prompt_and_answer"])
def test_a_policy_in_one_phase(
    post, make_service, make_engine, make_policy, behaved_checkpoint, behaved_alone, space
):
    policy = make_policy(behaved_checkpoint, action_space=space)
    engine = make_engine(behaved_checkpoint)
    prompts = [[1, 2, 3], [40, 50]]
    rows = policy.gates_for_prompts(engine.model, prompts)
    own = rows if rows.ndim == 2 else rows[:, 1]
    service = make_service(engine, policy=policy)
    gates = {"prompt": "odd", "answer": "policy"}
    answer = post(service, **{**GREEDY, "prompt": prompts}, gates=gates).json()
    assert labels(answer) == ("behaviour", "odd", "policy", None)
    assert answer["gates"] == pytest.approx(MEANT["odd"])  # common to the prompts
    assert answer["answer_gates"] is None
    for choice, prompt, row in zip(answer["choices"], prompts, own, strict=True):
        expected = behaved_alone(prompt, {"prompt": "odd", "answer": row}, max_tokens=12)
        assert choice["text"] == expected.text
        assert choice["answer_gates"] == list(expected.answer_gates)


@pytest.mark.parametrize(
    "gates",
    ["loud", "Direct", "", {"prompt": "loud"}, {"prompt": 0.5, "answer": "loud"}],
    ids=str,
)
def test_unknown_names_are_refused_with_the_list(
    post, error_of, make_service, make_engine, make_policy, behaved_checkpoint, gates
):
    engine = make_engine(behaved_checkpoint)
    service = make_service(engine)
    error = error_of(post(service, **GREEDY, gates=gates), 400)
    assert (error["param"], error["code"]) == ("gates", "invalid_gates")
    assert error["message"].endswith('or a name: "learned", "direct", "odd", "worked"')
    service.close()
    with_policy = make_service(
        make_engine(behaved_checkpoint), policy=make_policy(behaved_checkpoint)
    )
    error = error_of(post(with_policy, **GREEDY, gates=gates), 400)
    assert error["message"].endswith('or a name: "learned", "policy", "direct", "odd", "worked"')


@pytest.mark.parametrize(
    ("gates", "reason"),
    [
        ({}, "gates have the keys none; allowed: prompt, answer"),
        ({"prompt": 0.5, "reply": 0.5}, "gates have the keys prompt, reply; allowed"),
        ({"prompt": 1.5}, "gate 0 is 1.5; allowed: 1 number"),
        ({"answer": [0.5] * 4}, "4 gates given; allowed"),
        ({"answer": {"prompt": 0.5}}, "gates are {'prompt': 0.5}; allowed"),
        ({"prompt": ["direct"]}, "gate 0 is 'direct', not a number"),
        (["direct", "worked"], "gate 0 is 'direct', not a number"),
    ],
)
def test_other_mistakes_are_named(post, service, error_of, gates, reason):
    error = error_of(post(service, **GREEDY, gates=gates), 400)
    assert error["param"] == "gates"
    assert reason in error["message"]
    assert "3 (one per layer)" in error["message"]


def test_no_policy_says_which_names_there_are(post, service, error_of):
    for gates in ("policy", {"prompt": "direct", "answer": "policy"}):
        error = error_of(post(service, **GREEDY, gates=gates), 400)
        assert error["code"] == "no_policy"
        assert "--policy" in error["message"]
        assert "learned, direct, odd, worked" in error["message"]


def test_chat_and_streams_say_the_same(call, service, events_of):
    gates = {"prompt": "direct", "answer": "odd"}
    common = {"temperature": 0, "max_tokens": 4, "gates": gates}
    for path, fields in (
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        whole = call("POST", path, service, json={**fields, **common}).json()
        choice = whole["choices"][0]
        assert whole["answer_gates"] == choice["answer_gates"] == pytest.approx(MEANT["odd"])
        streamed = call("POST", path, service, json={**fields, **common, "stream": True})
        *chunks, _ = events_of(streamed)
        for chunk in chunks:
            assert labels(chunk) == labels(whole) == ("behaviour", "direct", "behaviour", "odd")
        first = chunks[0]["choices"][0]
        assert (first["gates"], first["answer_gates"]) == (choice["gates"], choice["answer_gates"])


def test_a_mixed_batch_equals_lone_runs(
    make_service, make_engine, make_policy, make_valve, wait_until, client_of, behaved_checkpoint,
    behaved_alone, tokenizer,
):  # fmt: skip
    """Names, numbers, lists, phases and the policy in one batch of the engine."""
    policy = make_policy(behaved_checkpoint, action_space="prompt_and_answer")
    engine = make_engine(behaved_checkpoint, max_batch=16)
    service = make_service(engine, policy=policy)
    given = [
        *("direct", "worked", "odd", "learned", None, "policy", 0.4, 0.15, 1),
        *([0.0, 1.0, 0.25], MEANT["worked"], {"prompt": "direct", "answer": "worked"}),
        *({"answer": "direct"}, {"prompt": 0.9, "answer": [0.1, 0.5, 0.9]}),
        *({"prompt": "policy", "answer": "odd"}, {"prompt": "worked", "answer": "policy"}),
    ]
    prompts = [f"{PROMPT} and {i}" for i in range(len(given))]

    async def run() -> list[dict]:
        async with client_of(service) as client:
            bodies = [
                {**GREEDY, "prompt": prompt, "gates": gates}
                for prompt, gates in zip(prompts, given, strict=True)
            ]
            valve = make_valve(engine)
            calls = [
                asyncio.create_task(client.post("/v1/completions", json=body)) for body in bodies
            ]
            await asyncio.to_thread(wait_until, lambda: service._batcher.pending == len(given))
            valve.open.set()
            answers = [response.json() for response in await asyncio.gather(*calls)]
            assert valve.passes < 60  # alone they take 12 each
            return answers

    answers = asyncio.run(run())
    for prompt, gates, answer in zip(prompts, given, answers, strict=True):
        tokens = tokenizer.encode(prompt, bos=True)
        (row,) = policy.gates_for_prompts(engine.model, [tokens])
        chosen = {
            phase: row[place] if asked == "policy" else asked
            for place, (phase, asked) in enumerate(
                (phase, gates.get(phase) if isinstance(gates, dict) else gates)
                for phase in ("prompt", "answer")
            )
        }
        expected = behaved_alone(tokens, chosen, max_tokens=12)
        assert answer["choices"][0]["text"] == expected.text, gates
        assert answer["gates"] == pytest.approx(expected.gates, abs=1e-6)
        if expected.answer_gates is None:
            assert answer["answer_gates"] is None
        else:
            assert answer["answer_gates"] == pytest.approx(expected.answer_gates, abs=1e-6)
    assert len({answer["choices"][0]["text"] for answer in answers}) > 8


def test_models_and_gates_list_the_behaviours(call, service):
    card = call("GET", "/v1/models", service).json()["data"][0]
    found = card["behaviours"]
    assert call("GET", "/v1/gates", service).json()["behaviours"] == found
    assert [each["name"] for each in found] == list(MEANT)
    for each in found:
        assert each["gates"] == pytest.approx(MEANT[each["name"]])
    assert [each["ranges"] for each in found] == [
        [[0.0, 0.3]],
        [[0.0, 1.0]],
        [[0.7, 1.0], [0.2, 0.4], [0.5, 0.5]],
    ]
    assert [each["style"] for each in found] == ["direct", None, None]
    assert [each["share"] for each in found] == [0.5, None, None]


def test_routing_is_that_of_the_prompts_gates(call, service):
    def routing(gates) -> dict:
        return call("POST", "/v1/routing", service, json={"prompt": PROMPT, "gates": gates}).json()

    named = routing("odd")
    assert (named["gates_source"], named["behaviour"]) == ("behaviour", "odd")
    numbers = routing(MEANT["odd"])
    assert named["sublayers"] == numbers["sublayers"]
    assert routing({"prompt": "odd", "answer": 1.0}) == named
    assert routing({"answer": 1.0})["gates_source"] == "learned"


def test_the_log_names_behaviours_and_tells_phases_apart(
    post, make_service, make_engine, behaved_checkpoint
):
    class Kept:
        def __init__(self):
            self.records = []

        def finished(self, record):
            self.records.append(record)

        def accepted(self, *_):
            pass

        first_token = load = accepted

    kept = Kept()
    service = make_service(make_engine(behaved_checkpoint), observer=kept)
    given = ["direct", 0.15, {"prompt": "direct", "answer": "odd"}, {"prompt": "direct"}]
    for gates in given:
        post(service, **GREEDY, gates=gates)
    one, other, *apart = kept.records
    assert [(r.gates_source, r.behaviour) for r in (one, other)] == [
        ("behaviour", "direct"),
        ("request", None),
    ]
    assert one.gates_hash == other.gates_hash == gates_hash(torch.full((6,), 0.15))
    assert apart[0].gates_hash == gates_hash(torch.tensor([MEANT["direct"], MEANT["odd"]]))
    assert (apart[0].answer_gates_source, apart[0].answer_behaviour) == ("behaviour", "odd")
    assert len({record.gates_hash for record in (one, *apart)}) == 3
