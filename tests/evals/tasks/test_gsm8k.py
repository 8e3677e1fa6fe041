"""GSM8K: prompts, extraction and scores by the harness's rules, worked out by hand; and the plan on
a real engine with a tiny random model, and on one model that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evals.problems import Problem, load_problems
from evals.tasks import (
    INVALID,
    STOP_STRINGS,
    document,
    evaluate,
    extract,
    gold_answer,
    gsm8k_plan,
    prompt,
    prompt_tokens,
    score,
)
from evals.tasks.gsm8k import TOO_LONG
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import DataError, EngineError, GateError

ONE = Problem("p-0", "How many?", "2 + 3 = <<2+3=5>>5 apples.\n#### 5")


def test_prompt_and_document_are_the_harness_format():
    assert prompt(ONE) == "Question: How many?\nAnswer:"
    assert document(ONE) == "Question: How many?\nAnswer: 2 + 3 = <<2+3=5>>5 apples.\n#### 5"
    shot = Problem("p-1", "First?", "#### 1")
    assert prompt(ONE, (shot, shot)) == (
        "Question: First?\nAnswer: #### 1\n\n"
        "Question: First?\nAnswer: #### 1\n\n"
        "Question: How many?\nAnswer:"
    )
    assert STOP_STRINGS[0] == "Question:"


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" It is 7.\n#### 7", "7", "7"),
        ("#### 5\n#### 7", "5", "7"),  # strict: the first, flexible: the last
        ("#### -3", "-3", "-3"),
        ("#### 1,080", "1,080", "1,080"),
        ("####7", INVALID, "7"),  # the space is part of the format
        ("####  7", INVALID, "7"),
        ("#### $70", INVALID, "$70"),  # strict knows no dollar sign
        ("so $70.50 in total", INVALID, "$70.50"),
        ("the answer is 7.", INVALID, "7."),
        ("12 apples and 3 pears", INVALID, "3"),
        ("no number", INVALID, INVALID),
        ("", INVALID, INVALID),
        ("a...", INVALID, "..."),
        ("#### 7 <<1+2=3>>", "7", "3"),
    ],
)
def test_extraction(text, strict, flexible):
    assert extract(text) == (strict, flexible)


@pytest.mark.parametrize(
    ("text", "answer", "strict", "flexible"),
    [
        ("#### 1080", "#### 1,080", True, True),
        ("#### 1,080.", "#### 1080", True, True),  # comma and trailing period are ignored
        ("it costs $1,080", "#### 1080", False, True),
        ("#### 5.", "#### 5", True, True),
        ("#### 5.0", "#### 5", False, False),  # exact match of text, not of numbers
        ("#### 55", "#### 5", False, False),
        ("#### 6\nno, 5", "#### 5", False, True),
        ("#### 5\nno, 6", "#### 5", True, False),
        ("#### -5", "#### 5", False, False),
        ("", "#### 5", False, False),
    ],
)
def test_score(text, answer, strict, flexible):
    result = score(text, Problem("p", "q", answer))
    assert (result.strict, result.flexible) == (strict, flexible)


@given(st.integers(-(10**9), 10**9), st.text())
def test_final_line_is_always_found_whatever_the_steps(number, steps):
    text = steps.replace("#", "") + f"\n#### {number:,}"
    problem = Problem("p", "q", f"#### {number}")
    assert score(text, problem).strict
    assert gold_answer(problem) == str(number)


def test_every_gsm8k_answer_scores_itself(shared_data):
    for split, count in (("train", 7473), ("test", 1319)):
        problems = load_problems(str(shared_data / "gsm8k"), split)
        assert len(problems) == count == len({p.id for p in problems})
        for problem in problems:
            result = score(f" {problem.answer}", problem)
            assert result.strict
            assert result.flexible
            assert gold_answer(problem).lstrip("-").isdigit()


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
