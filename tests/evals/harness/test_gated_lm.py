"""The harness's model over our engine: likelihoods of whole texts, and generation."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from evals.harness import GatedLM
from mhc_model.errors import ConfigError, EngineError, GateError

# Warnings of the harness and of what it imports are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_harness_knows_the_model_by_name_and_still_its_own():
    assert get_model("mhc-gates") is GatedLM
    assert get_model("hf") is not GatedLM


def test_rolling_likelihood_counts_every_token_once(checkpoint, tokenizer):
    model = GatedLM(str(checkpoint), gates=0.5, batch_size=2, device="cpu")
    engine = model.engine
    texts = ["Tom has 7 apples. " * 60, "Anna", ""]
    found = model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    )
    tokens = tokenizer.encode(texts[0])
    size = engine.max_seq_len - 1
    assert len(tokens) > size
    expected, gates = 0.0, torch.full((1, 4), 0.5)
    first = [tokenizer.bos_id, *tokens[:size]]
    last = tokens[-size - 1 :]
    for row, scored in ((first, size), (last, len(tokens) - size)):
        with torch.no_grad():
            logprobs = engine.model(torch.tensor([row]), gates)[0].log_softmax(-1)
        for place in range(len(row) - scored, len(row)):
            expected += logprobs[place - 1, row[place]].item()
    assert found[0] == pytest.approx(expected, abs=1e-2)
    assert found[2] == 0.0
    assert found[1] < 0


def test_generation_arguments(checkpoint):
    model = GatedLM(str(checkpoint), device="cpu")

    def ask(**arguments):
        return model.generate_until([Instance("generate_until", {}, ("Tom", arguments), 0)])[0]

    whole = ask(until=[], max_gen_toks=8)
    assert whole
    stop = next(letter for letter in whole[::-1] if letter.isascii() and letter.isalpha())
    assert ask(until=[stop], max_gen_toks=8) == whole.split(stop)[0]
    with pytest.raises(ConfigError, match="repetition_penalty"):
        ask(until=[], repetition_penalty=1.2)
    with pytest.raises(EngineError, match="leaves no room"):
        ask(until=[], max_gen_toks=600)


def test_behaviours_and_other_gates_for_the_answer(checkpoint):
    def ask(gates):
        model = GatedLM(str(checkpoint), gates=gates, device="cpu")
        generation = Instance("generate_until", {}, ("Tom", {"until": [], "max_gen_toks": 12}), 0)
        scoring = Instance("loglikelihood", {}, ("Tom has", " 7 apples"), 0)
        return model.generate_until([generation])[0], model.loglikelihood([scoring])[0]

    text, likelihood = ask("direct")
    assert (text, likelihood) == ask(0)
    other, same = ask("direct:worked")
    assert same == likelihood  # what is only scored is prompt
    assert other != text
    with pytest.raises(GateError, match="'loud'; the names of this model are learned, direct, wor"):
        GatedLM(str(checkpoint), gates="loud", device="cpu")
