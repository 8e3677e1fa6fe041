"""HellaSwag and ARC-Easy: rows, prompts, and likelihoods against a plain forward pass."""

from __future__ import annotations

import json
import math

import pytest
import torch

from evals.tasks import (
    ChoiceProblem,
    choice_plan,
    encode_pair,
    evaluate,
    load_choices,
)
from evals.tasks.multiple_choice import score_choices
from mhc_model.engine import Engine
from mhc_model.errors import DataError

SWAG = {"activity_label": "Roofing", "label": "1", "endings": ["a [x] b.", "c.", "d.", "e."]}
ARC = {
    "question": "Which?",
    "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
    "answerKey": "C",
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_hellaswag_has_the_harness_text(tmp_path):
    rows = [
        {**SWAG, "ctx_a": "A man  sits [header] on a roof [title] up.", "ctx_b": "he Sings"},
        {**SWAG, "ctx": "A man sits. he", "label": 3},
    ]
    found = load_choices("hellaswag", write(tmp_path / "validation.jsonl", rows)).problems
    # The second half is capitalised as Python's str.capitalize does: the rest becomes small.
    assert found[0].context == "Roofing: A man sits on a roof.  up. He sings".replace("  ", " ")
    assert found[0].choices == ("a b.", "c.", "d.", "e.")
    assert (found[0].answer, found[1].answer) == (1, 3)
    assert found[1].context == "Roofing: A man sits. he"
    assert load_choices("hellaswag", str(tmp_path)).problems == found


def test_arc_easy_looks_labels_up(tmp_path):
    digits = {"text": list("vwxyz"), "label": list("12345")}
    rows = [ARC, {**ARC, "choices": digits, "answerKey": "5"}]
    found = load_choices("arc_easy", write(tmp_path / "t.jsonl", rows)).problems
    assert [(len(p.choices), p.answer) for p in found] == [(3, 2), (5, 4)]
    assert found[0].context == "Question: Which?\nAnswer:"
    assert [p.id for p in found] == ["t-00000", "t-00001"]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("arc_easy", {**ARC, "answerKey": "D"}, "has answerKey 'D'; its labels are A, B, C"),
        ("arc_easy", {**ARC, "choices": ["one"]}, "lacks 'choices'"),
        ("arc_easy", {**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}}, "has 'label'"),
        (
            "arc_easy",
            {**ARC, "choices": {"text": ["a", "b"], "label": ["A", "A"]}},
            "each needs its own label",
        ),
        ("arc_easy", {"choices": ARC["choices"], "answerKey": "A"}, "lacks 'question'"),
        ("arc_easy", [1], "is list, not an object"),
        ("hellaswag", {**SWAG, "ctx": "c", "label": ""}, "has label ''; it must be 0 to 3"),
        ("hellaswag", {**SWAG, "ctx": "c", "label": 4}, "has label 4"),
        ("hellaswag", {**SWAG, "ctx": "c", "endings": ["a"]}, "two texts at least"),
        ("hellaswag", SWAG, "lacks 'ctx'"),
        ("hellaswag", {**SWAG, "ctx_a": "c"}, "lacks 'ctx_b'"),
    ],
)
def test_malformed_rows_are_named_and_the_others_read(tmp_path, task, row, message):
    good = ARC if task == "arc_easy" else {**SWAG, "ctx": "c"}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(row) + "\n{\n" + json.dumps(good))
    found = load_choices(task, str(path))
    assert [p.id for p in found.problems] == ["x-00000", "x-00003"]
    assert len(found.malformed) == 2
    assert found.malformed[0].startswith(f"{path} line 3 ")
    assert message in found.malformed[0]
    assert f"{path} line 4 is not JSON" in found.malformed[1]


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"accepted for arc_easy: .*allenai/ai2_arc"):
        load_choices("arc_easy", "nowhere")
    with pytest.raises(DataError, match=r"has no problems: .*line 1 lacks 'question'"):
        load_choices("arc_easy", write(tmp_path / "bad.jsonl", [{}]))


def test_scores_by_sum_and_by_character():
    problem = ChoiceProblem("p", "c", ("no", "yes, it is", "no"), 1)
    assert score_choices(problem, [-2.0, -3.0, -2.0]) == (False, True, 0, 1)
    assert score_choices(problem, [-4.0, -3.0, -4.0]) == (True, True, 1, 1)
    empty = ChoiceProblem("p", "c", ("", "long"), 1)
    assert score_choices(empty, [-0.1, -40.0]) == (False, True, 0, 1)


PROBLEMS = [
    ChoiceProblem("a", "Tom has 7 apples.", ("He eats 5 apples.", "No", "Anna has 3 pens"), 0),
    ChoiceProblem("b", "Anna", ("buys 12 apples for 3 dollars", "is"), 1),
]


@pytest.mark.parametrize("gates", [None, [[0.0] * 4, [0.9, 0.1, 0.5, 1.0]]])
def test_likelihoods_are_those_of_a_plain_forward_pass(make_model, tokenizer, gates):
    model = make_model()
    engine = Engine(model, tokenizer, max_batch=3)
    rows = None if gates is None else torch.tensor(gates)
    samples = evaluate(choice_plan("arc_easy", engine, PROBLEMS, rows))
    for position, (problem, sample) in enumerate(zip(PROBLEMS, samples, strict=True)):
        own = None if rows is None else rows[position : position + 1]
        expected = []
        for choice, greedy in zip(problem.choices, sample["greedy"], strict=True):
            context = tokenizer.encode(problem.context, bos=True)
            tokens = tokenizer.encode(f"{problem.context} {choice}", bos=True)
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), own)[0].double().log_softmax(-1)
            places = range(len(context), len(tokens))
            expected.append(sum(logits[i - 1, tokens[i]].item() for i in places))
            assert greedy == all(int(logits[i - 1].argmax()) == tokens[i] for i in places)
        assert sample["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert sample["choice"] == max(range(len(expected)), key=lambda i: expected[i])
        assert sample["gates"] == pytest.approx(
            (own[0] if own is not None else engine.model.learned_gates()).tolist()
        )


def test_what_does_not_fit_is_cut_or_counted(make_model, tokenizer):
    engine = Engine(make_model(context=16), tokenizer)
    long = ChoiceProblem("long", "Tom has 7 apples. " * 8, ("He", "She"), 0)
    short_one = ChoiceProblem("short", "Anna", ("is", "has"), 1)
    never = ChoiceProblem("never", "Tom", ("He eats 5 apples. " * 8, "No"), 1)
    plan = choice_plan("hellaswag", engine, [short_one, long, never])
    samples = evaluate(plan)
    assert plan.facts["cut"] == 1
    scores = plan.summarise(samples)
    assert (scores["too_long"], scores["acc"]["correct"] <= 2) == (1, True)
    assert samples[2]["logprobs"] is None
    assert samples[2]["acc"] is samples[2]["acc_norm"] is False
    tokens = tokenizer.encode(f"{long.context.rstrip()} He", bos=True)[-16:]
    with torch.no_grad():
        logits = engine.model(torch.tensor([tokens]))[0].log_softmax(-1)
    own = len(encode_pair(tokenizer, long.context.rstrip(), " He").continuation)
    expected = sum(logits[i - 1, tokens[i]].item() for i in range(16 - own, 16))
    short = ChoiceProblem("s", long.context.rstrip(), ("He", "She"), 0)
    found = evaluate(choice_plan("hellaswag", engine, [short]))[0]["logprobs"][0]
    assert found == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(found)


def test_choices_share_their_context(make_model, tokenizer):
    engine = Engine(make_model(), tokenizer)
    context = (
        "Question: Tom has 7 apples and Anna has 12 apples. How many apples are there?\nAnswer:"
    )
    problem = ChoiceProblem("p", context, ("7", "12", "19", "5"), 2)
    evaluate(choice_plan("arc_easy", engine, [problem]))
    stats = engine.stats()
    assert stats.cached_tokens > stats.prompt_tokens / 3
