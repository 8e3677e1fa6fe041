"""The task on a real engine with a tiny random model, and one model that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from evals.tasks.gsm8k import TOO_LONG, gsm8k_plan, prompt_tokens
from evals.tasks.gsm8k_pure import Problem, load_problems, prompt, score
from evals.tasks.plan import evaluate
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import DataError, EngineError, GateError

PROBLEMS = load_problems("builtin:1,2", "test", 12)


class Result:
    """A plan run in memory: attributes of its facts, its scores and its samples."""

    def __init__(self, plan) -> None:
        self.samples = [SimpleNamespace(**row) for row in evaluate(plan)]
        values = {**plan.facts, **plan.summarise([vars(sample) for sample in self.samples])}
        self.__dict__ |= values


def evaluate_gsm8k(engine, problems, gates=None, shots=(), max_tokens=256) -> Result:
    return Result(gsm8k_plan("gsm8k", engine, problems, gates, shots, max_tokens))


@pytest.fixture
def engine(make_model, tokenizer):
    return Engine(make_model(), tokenizer, max_batch=5)


def test_samples_are_those_of_the_engine_one_by_one(engine, tokenizer):
    result = evaluate_gsm8k(engine, PROBLEMS, 0.5, max_tokens=16)
    assert [sample.id for sample in result.samples] == [problem.id for problem in PROBLEMS]
    for sample, problem in zip(result.samples, PROBLEMS, strict=True):
        tokens = tokenizer.encode(prompt(problem), bos=True)
        sampling = SamplingParams(max_tokens=16, stop=("Question:", "</s>", "<|im_end|>"))
        (alone,) = engine.generate([Request(tokens, 0.5, sampling)])
        assert (sample.completion, sample.tokens) == (alone.text, len(alone.tokens))
        assert (sample.strict, sample.flexible) == score(alone.text, problem)[:2]
        assert sample.gates == (0.5,) * 4
        assert sample.prompt_tokens == len(tokens)
    assert result.n == 12
    assert result.generated_tokens == sum(sample.tokens for sample in result.samples)
    assert (result.max_tokens_cut, result.too_long) == (0, 0)


def test_gates_one_row_a_problem(engine):
    rows = torch.zeros(12, 4)
    rows[6:] = 1.0
    mixed = evaluate_gsm8k(engine, PROBLEMS, rows, max_tokens=16).samples
    closed = evaluate_gsm8k(engine, PROBLEMS, 0, max_tokens=16).samples
    opened = evaluate_gsm8k(engine, PROBLEMS, 1, max_tokens=16).samples
    assert mixed == closed[:6] + opened[6:]
    assert [s.completion for s in closed] != [s.completion for s in opened]


def test_learned_gates_and_a_plain_model(engine, make_model, tokenizer):
    learned = engine.model.learned_gates().tolist()
    for sample in evaluate_gsm8k(engine, PROBLEMS[:2], max_tokens=2).samples:
        assert list(sample.gates) == pytest.approx(learned)
    plain = Engine(make_model(mhc=False), tokenizer)
    assert evaluate_gsm8k(plain, PROBLEMS[:2], max_tokens=2).samples[0].gates is None
    with pytest.raises(GateError, match="plain"):
        evaluate_gsm8k(plain, PROBLEMS[:2], 1.0)


def test_prompts_that_do_not_fit_are_cut_or_counted_wrong(make_model, tokenizer):
    lengths = sorted((len(prompt_tokens(tokenizer, p)), p.id) for p in PROBLEMS)
    context = lengths[5][0]  # the prompt of rank 5 fills it: no room for a token
    model = make_model(context=context)
    result = evaluate_gsm8k(Engine(model, tokenizer), PROBLEMS, max_tokens=16)
    too_long = {identity for length, identity in lengths if length >= context}
    cut = {identity for length, identity in lengths if context - 16 < length < context}
    assert (result.too_long, result.max_tokens_cut) == (len(too_long), len(cut))
    assert {s.id for s in result.samples if s.finish_reason == TOO_LONG} == too_long
    assert len(result.samples) == 12  # none is dropped
    for sample in result.samples:
        if sample.id in too_long:
            assert (sample.strict, sample.flexible, sample.tokens) == (False, False, 0)
        else:
            assert sample.prompt_tokens + sample.tokens <= context


def test_shots_come_before_the_question_and_change_the_fingerprint(make_model, tokenizer):
    engine = Engine(make_model(context=400), tokenizer)
    shots = load_problems("builtin:1", "train", 2)
    with_shots = evaluate_gsm8k(engine, PROBLEMS[:3], shots=shots, max_tokens=4)
    without = evaluate_gsm8k(engine, PROBLEMS[:3], max_tokens=4)
    assert with_shots.n_shot == 2
    assert with_shots.samples[0].prompt == prompt(PROBLEMS[0], shots)
    assert with_shots.prompts_sha256 != without.prompts_sha256
    again = evaluate_gsm8k(engine, PROBLEMS[:3], 0.25, max_tokens=2)
    assert again.prompts_sha256 == without.prompts_sha256


def test_a_model_that_memorised_the_answers_is_right(make_model, tokenizer):
    """End to end: what was trained on documents is prompted, decoded, stopped and scored so."""
    problems = load_problems("builtin:1", "test", 2)
    model = make_model(context=256).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [[*prompt_tokens(tokenizer, p), *tokenizer.encode(" " + p.answer)] for p in problems]
    # One document ends; after the other the model goes on to a next question, as base models do.
    rows = [[*rows[0], tokenizer.eos_id], rows[1] + tokenizer.encode("\n\nQuestion: Who? 7 7 7")]
    for _ in range(30):
        for row in rows:
            tokens = torch.tensor([row])
            logits = model(tokens[:, :-1]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    result = evaluate_gsm8k(Engine(model, tokenizer), problems, max_tokens=80)
    assert result.strict["correct"] == result.flexible["correct"] == 2
    ends = ("", "\n\n")
    assert [s.completion for s in result.samples] == [
        f" {p.answer}{end}" for p, end in zip(problems, ends, strict=True)
    ]
    assert [s.finish_reason for s in result.samples] == ["stop", "stop"]
    other = [Problem(p.id, p.question, p.answer + "1") for p in problems]
    assert evaluate_gsm8k(Engine(model, tokenizer), other, max_tokens=80).strict["correct"] == 0


def test_bad_calls(engine, make_model):
    with pytest.raises(DataError, match="different ids"):
        evaluate_gsm8k(engine, [PROBLEMS[0], PROBLEMS[0]])
    with pytest.raises(DataError, match="0 problems"):
        evaluate_gsm8k(engine, [])
    with pytest.raises(GateError, match=r"expected \(12, 4\)"):
        evaluate_gsm8k(engine, PROBLEMS, torch.ones(11, 4))
    with pytest.raises(GateError, match=r"gate 0 is 1\.5"):
        evaluate_gsm8k(engine, PROBLEMS, torch.full((12, 4), 1.5))
    with pytest.raises(EngineError, match="max_tokens is 0"):
        evaluate_gsm8k(engine, PROBLEMS, max_tokens=0)
    with pytest.raises(EngineError, match="tokenizer"):
        evaluate_gsm8k(Engine(make_model()), PROBLEMS)
    assert not engine.has_work
