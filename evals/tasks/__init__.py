"""What is asked of a model, and how its answers are scored: one file a task.

In: problems or texts, an engine, gates. Out: a `Plan`, which is items with requests, facts about
them, and a function from their samples to scores. A plan knows nothing of where it runs. May import
evals.problems, evals.settings and evals.statistics, and mhc_model.

    plan.py             `Plan`, `Item`, `Sample`, and running them on one engine
    likelihood.py       how likely a continuation is, asked of an engine
    gsm8k.py            GSM8K and the built-in problems: one greedy answer a problem
    multiple_choice.py  HellaSwag and ARC-Easy: the likeliest of some choices
    bits_per_byte.py    text of any kind: `TextPlan`, with the face of a `Plan`
"""

from evals.problems import Problem, load_problems
from evals.tasks.bits_per_byte import TextPlan, bits_per_byte, text_plan
from evals.tasks.gsm8k import (
    EXTRACTION_VERSION,
    EXTRACTIONS,
    INVALID,
    PROMPT_VERSION,
    STOP_STRINGS,
    Extracted,
    Score,
    document,
    extract,
    gold_answer,
    gsm8k_plan,
    prompt,
    prompt_tokens,
    score,
)
from evals.tasks.likelihood import Pair, encode_pair, likelihood_request, read_likelihood
from evals.tasks.multiple_choice import (
    CHOICE_ROWS,
    ChoiceProblem,
    choice_context,
    choice_plan,
    load_choices,
)
from evals.tasks.plan import (
    Item,
    Plan,
    Runner,
    Sample,
    evaluate,
    fingerprint,
    gate_rows,
    run_items,
    scoring_gates,
)

__all__ = [
    "CHOICE_ROWS",
    "EXTRACTIONS",
    "EXTRACTION_VERSION",
    "INVALID",
    "PROMPT_VERSION",
    "STOP_STRINGS",
    "ChoiceProblem",
    "Extracted",
    "Item",
    "Pair",
    "Plan",
    "Problem",
    "Runner",
    "Sample",
    "Score",
    "TextPlan",
    "bits_per_byte",
    "choice_context",
    "choice_plan",
    "document",
    "encode_pair",
    "evaluate",
    "extract",
    "fingerprint",
    "gate_rows",
    "gold_answer",
    "gsm8k_plan",
    "likelihood_request",
    "load_choices",
    "load_problems",
    "prompt",
    "prompt_tokens",
    "read_likelihood",
    "run_items",
    "score",
    "scoring_gates",
    "text_plan",
]
