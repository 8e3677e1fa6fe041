"""Behaviours by name, and gates that change once a prompt is read: from configuration to engine."""

from __future__ import annotations

import pytest
import torch

from mhc_model import (
    Decoder,
    Engine,
    GateError,
    ModelConfig,
    Request,
    SamplingParams,
    load_checkpoint,
    save_checkpoint,
)
from mhc_model.errors import ConfigError
from mhc_model.gates import expand_gate_rows, parse_gates, resolve_gates
from mhc_model.policy import GatePolicy, PolicyConfig
from mhc_model.settings import validate_settings

BEHAVIOURS = {
    "direct": {"gates": [0.0, 0.3]},
    "worked": {"gates": [[0.7, 1.0], [0.2, 0.4], [0.5, 0.5]], "share": 0.25},
    "odd": {"gates": [0.0, 1.0], "style": "brief", "at": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]},
}
MEANT = {
    "direct": [0.15] * 6,
    "worked": [0.85, 0.85, 0.3, 0.3, 0.5, 0.5],
    "odd": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0],
}


@pytest.fixture(scope="module")
def model(tiny_model) -> Decoder:
    return tiny_model(behaviours=BEHAVIOURS)


def close(found, expected) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=0)


# Configuration


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_name_stands_for_its_gates(model, name):
    phases = resolve_gates(name, model.config)
    close(phases.prompt, MEANT[name])
    assert phases.answer is phases.prompt


@pytest.mark.parametrize(
    ("name", "behaviour", "reason"),
    [
        ("x", {"gates": [0.5, 0.2]}, "0.5 to 0.2 has its ends in the wrong order"),
        ("x", {"gates": [0.0, 1.5]}, "less than or equal to 1"),
        ("x", {"gates": []}, "gates"),
        ("x", {"gates": [[0, 1]] * 4}, "x has 4 ranges; allowed: 1 .*3 .*6"),
        ("x", {"gates": [0, 1], "at": [0.1, 0.2]}, "2 numbers in `at`"),
        ("learned", {"gates": [0, 1]}, "none of learned, policy"),
        ("no space", {"gates": [0, 1]}, "'no space'"),
        ("x", {"range": [0, 1]}, "range"),
        ("x", {"gates": [0, 1], "style": "loud"}, "style is 'loud': .*direct.*brief.*worked"),
    ],
)
def test_impossible_behaviours_are_refused(tiny_config, name, behaviour, reason):
    values = tiny_config().model_dump() | {"behaviours": {name: behaviour}}
    with pytest.raises(ConfigError, match=reason):
        validate_settings(ModelConfig, values, "test")


def test_a_plain_model_has_no_behaviours(tiny_config):
    values = tiny_config(plain=True).model_dump() | {"behaviours": BEHAVIOURS}
    with pytest.raises(ConfigError, match=r"direct, worked, odd.*plain"):
        validate_settings(ModelConfig, values, "test")


def test_they_travel_with_the_checkpoint(model, tmp_path):
    save_checkpoint(tmp_path / "model", model)
    config = load_checkpoint(tmp_path / "model").model.config
    assert config == model.config
    assert config.behaviours["worked"].share == 0.25
    assert [config.behaviours[name].style for name in BEHAVIOURS] == [None, None, "brief"]


def test_an_unknown_name_is_refused_with_the_list(model, tiny_model):
    with pytest.raises(GateError, match=r"'loud'.*learned, direct, worked, odd"):
        Engine(model).add(Request([1], "loud", SamplingParams(max_tokens=1)))
    with pytest.raises(GateError, match="plain"):
        Engine(tiny_model(plain=True)).add(Request([1], "direct", SamplingParams(max_tokens=1)))
    for bad in ({}, {"prompt": 0.1, "reply": 0.2}, {"prompt": "loud"}):
        with pytest.raises(GateError, match=r"allowed: prompt, answer|'loud'"):
            resolve_gates(bad, model.config)


def test_the_words_of_a_command_line(model):
    assert parse_gates("learned") is None
    assert parse_gates("0.5,1") == [0.5, 1.0]
    assert parse_gates("direct") == "direct"
    assert parse_gates("direct:0.5") == {"prompt": "direct", "answer": [0.5]}
    assert parse_gates("learned:odd") == {"prompt": None, "answer": "odd"}
    with pytest.raises(GateError, match=r"'0\.5,x'.*learned.*behaviour"):
        parse_gates("0.5,x")


def test_rows_for_many_problems(model):
    config, learned = model.config, model.learned_gates().detach()
    assert expand_gate_rows("learned", 3, config) is None
    close(expand_gate_rows("odd", 3, config), [MEANT["odd"]] * 3)
    rows = expand_gate_rows({"answer": "direct"}, 2, config, learned)
    assert rows.shape == (2, 2, 6)
    close(rows[1, 0], learned)
    close(rows[1, 1], MEANT["direct"])
    close(expand_gate_rows(rows, 2, config), rows)
    with pytest.raises(GateError, match="learned gates"):
        expand_gate_rows({"answer": "direct"}, 2, config)
    with pytest.raises(GateError, match="shape"):
        expand_gate_rows(torch.zeros(3, 6), 2, config)


# The engine


def requests() -> list[Request]:
    """Names, numbers, lists, phases: all different gates, all longer than a block of the cache."""
    given = [
        *("direct", "worked", "odd", None, "learned", 0.15, [0.85, 0.3, 0.5]),
        *({"prompt": "direct", "answer": "worked"}, {"prompt": "worked", "answer": "direct"}),
        *({"answer": 1.0}, {"prompt": 0}, torch.tensor([[0.1], [0.9]])),
        torch.tensor([MEANT["odd"], MEANT["worked"]]),
    ]
    sampling = SamplingParams(max_tokens=8, logprobs=True, top_logprobs=3)
    prompt = torch.randint(0, 61, (36,), generator=torch.Generator().manual_seed(1)).tolist()
    return [Request(prompt[: 20 + i % 3 * 8], gates, sampling) for i, gates in enumerate(given)]


def test_a_mixed_batch_equals_lone_runs(model):
    wanted = requests()
    alone = [Engine(model, max_batch=1).generate([one])[0] for one in wanted]
    for engine in (Engine(model, max_batch=16), Engine(model, max_batch=3, prefill_chunk=7)):
        for together, lone in zip(engine.generate(wanted), alone, strict=True):
            assert together.tokens == lone.tokens
            assert (together.gates, together.answer_gates) == (lone.gates, lone.answer_gates)
            torch.testing.assert_close(together.logprobs, lone.logprobs, atol=1e-4, rtol=0)
    named, numbers = alone[0], alone[5]
    close(named.gates, MEANT["direct"])
    assert named.answer_gates is None
    assert wanted[0].prompt != wanted[5].prompt or named.tokens == numbers.tokens
    close(alone[7].gates, MEANT["direct"])
    close(alone[7].answer_gates, MEANT["worked"])


@torch.no_grad()
def reference(model: Decoder, request: Request) -> tuple[list[int], list[float]]:
    """Greedy, uncached: a whole forward pass a token, every token under the gates of its phase."""
    phases = resolve_gates(request.gates, model.config)
    prompt, answer = (model.learned_gates() if gates is None else gates for gates in phases)
    tokens, logprobs = list(request.prompt), []
    for _ in range(request.sampling.max_tokens):
        new = len(tokens) - len(request.prompt)
        gates = torch.cat([prompt.expand(len(request.prompt), -1), answer.expand(new, -1)])
        scores = model(torch.tensor([tokens]), gates[None])[0, -1].log_softmax(dim=-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return tokens[len(request.prompt) :], logprobs


def test_gates_of_prompt_and_answer_equal_an_uncached_reference(model):
    engine = Engine(model, max_batch=4)
    wanted = requests()
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        tokens, logprobs = reference(model, request)
        assert list(completion.tokens) == tokens
        torch.testing.assert_close(list(completion.logprobs), logprobs, atol=1e-4, rtol=0)


def test_gates_of_a_token_are_those_of_its_sequence(model):
    tokens = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    each = rows[:, None].expand(-1, 9, -1)
    torch.testing.assert_close(model(tokens, each), model(tokens, rows), atol=1e-6, rtol=0)
    # A later token's gates change nothing before it.
    changed = each.clone()
    changed[:, 6:] = 1 - changed[:, 6:]
    before, after = model(tokens, each), model(tokens, changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-6, rtol=0)
    assert (before[:, 6:] - after[:, 6:]).abs().max() > 1e-3
    with pytest.raises(GateError, match="one per token"):
        model(tokens, each[:, :5])


def test_the_prefix_cache_knows_the_gates_of_prompts_only(model):
    prompt = list(range(40))
    sampling = SamplingParams(max_tokens=4)

    def cached(engine: Engine, gates) -> int:
        return engine.generate([Request(prompt, gates, sampling)])[0].cached_tokens

    engine = Engine(model)
    assert cached(engine, "direct") == 0
    assert cached(engine, {"prompt": "direct", "answer": "worked"}) == 32
    assert cached(engine, {"prompt": 0.15, "answer": 1.0}) == 32
    assert cached(engine, {"prompt": "worked", "answer": "direct"}) == 0
    assert cached(engine, {"prompt": "worked", "answer": "worked"}) == 32
    alone = Engine(model, prefix_cache_bytes=0)
    for gates in ({"prompt": "direct", "answer": 1.0}, {"prompt": "worked", "answer": 0.0}):
        request = Request(prompt, gates, SamplingParams(max_tokens=8))
        assert engine.generate([request])[0].tokens == alone.generate([request])[0].tokens


def test_a_policy_for_prompt_and_answer(model):
    config = PolicyConfig(
        action_space="prompt_and_answer", n_layers=3, observation_dim=32, hidden=(8,)
    )
    policy = GatePolicy(config)
    prompts = [[1, 2, 3], [4, 5]]
    actions = policy(torch.stack([model.embedding.weight[p].mean(0) for p in prompts]))
    rows = policy.gates_for_prompts(model, prompts)
    assert rows.shape == (2, 2, 6)
    close(rows, actions.detach()[:, :, None].expand(-1, -1, 6))
    requested = [
        Request(p, row, SamplingParams(max_tokens=2)) for p, row in zip(prompts, rows, strict=True)
    ]
    for completion, row in zip(Engine(model).generate(requested), rows, strict=True):
        close(completion.gates, row[0])
        close(completion.answer_gates, row[1])
