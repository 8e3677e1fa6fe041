"""What the engine is asked for: gates of a request or of the policy, within the model's limits."""

from __future__ import annotations

import pytest

from mhc_model import ConfigError

BY_POLICY = {"max_tokens": 4, "temperature": 0, "gates": "policy"}
GOOD = {"prompt": "Question:", "max_tokens": 2, "temperature": 0}


def test_each_prompt_gets_the_gates_of_the_policy(post, make_service, make_policy, make_engine):
    policy = make_policy()
    service = make_service(policy=policy)
    prompts = [[1, 2, 3], [40, 50]]
    answer = post(service, prompt=prompts, **BY_POLICY).json()
    expected = policy.gates_for_prompts(make_engine().model, prompts).tolist()
    for choice, row in zip(answer["choices"], expected, strict=True):
        assert choice["gates"] == pytest.approx(row, abs=1e-5)
    assert expected[0] != expected[1]
    assert answer["gates"] is None  # they differ
    assert answer["gates_source"] == "policy"
    one = post(service, prompt=prompts[0], **BY_POLICY).json()
    assert one["gates"] == pytest.approx(expected[0], abs=1e-5)
    assert one["choices"][0]["text"] == answer["choices"][0]["text"]
    assert service.models().data[0].policy is True


def test_tokens_are_checked_before_the_policy_sees_them(post, make_service, make_policy):
    service = make_service(policy=make_policy())
    for token in (300, -1, 10**30):
        response = post(service, prompt=[1, token], **BY_POLICY)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("gates", ["policy", None, 0.5, {"answer": "policy"}])
def test_an_empty_text_without_a_start_is_the_callers_mistake(
    call, make_service, make_engine, make_policy, startless_checkpoint, error_of, gates
):
    policy = make_policy(startless_checkpoint)
    service = make_service(make_engine(startless_checkpoint), policy=policy)
    for path in ("/v1/completions", "/v1/routing"):
        body = {"prompt": "", "gates": gates}
        error = error_of(call("POST", path, service, json=body), 400)
        assert "empty" in error["message"]
        assert error["param"] == "prompt"


@pytest.mark.parametrize("trained_on", ["0" * 64, None])
def test_a_policy_of_another_checkpoint_is_refused(make_service, make_policy, trained_on):
    with pytest.raises(ConfigError, match=trained_on or "unknown"):
        make_service(policy=make_policy(checkpoint_hash=trained_on))


LIMITS = ("1 number", "3 (one per layer)", "6 (one per sublayer)", "[0, 1]", '"learned"')
BAD_GATES = [-0.1, 1.1, [0.5, 0.5], [0.5] * 7, [], "half", "0.5", True, [True], ["0.5"]]
BAD_GATES += [[None], [[0.5]], {"g": 1}, 10**400, "x" * 100_000]


@pytest.mark.parametrize("gates", BAD_GATES, ids=lambda gates: repr(gates)[:20])
def test_bad_gates_name_lengths_and_range(post, error_of, gates):
    error = error_of(post(**GOOD, gates=gates), 400)
    assert error["param"] == "gates"
    assert error["type"] == "invalid_request_error"
    for limit in LIMITS:
        assert limit in error["message"]


def test_policy_without_a_policy_says_how_to_get_one(post, error_of):
    error = error_of(post(**GOOD, gates="policy"), 400)
    assert error["param"] == "gates"
    assert "--policy" in error["message"]


def test_context_limit_is_named(post, error_of):
    error = error_of(post(prompt=[1] * 90, max_tokens=7), 400)
    assert error["code"] == "context_length_exceeded"
    assert "96" in error["message"]
    assert "97" in error["message"]
    assert post(prompt=[1] * 90, max_tokens=6).status_code == 200


def test_tokens_outside_the_vocabulary(post, error_of):
    for token in (-1, 300, 10**30):
        assert "vocabulary" in error_of(post(prompt=[[1], [token]]), 400)["message"]


def test_too_many_prompts_for_the_queue(post, error_of):
    error = error_of(post(**{**GOOD, "prompt": ["a"] * 261}), 400)
    assert "260" in error["message"]


def test_an_answer_may_fill_the_context(chat):
    answer = chat(ignore_eos=True, stop_token_ids=[]).json()
    assert answer["usage"]["total_tokens"] == 96 or answer["choices"][0]["finish_reason"] == "stop"
    assert chat(max_tokens=1).json()["usage"]["completion_tokens"] == 1
    long = chat(messages=[{"role": "user", "content": "x" * 95}])
    assert long.status_code == 400
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert "96" in long.json()["error"]["message"]
