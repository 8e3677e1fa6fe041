"""How continuations are cut off their contexts, and what an engine says of them."""

from __future__ import annotations

import torch

from evals.tasks import Pair, encode_pair, likelihood_request, read_likelihood
from mhc_model.engine import Engine


def test_pairs_are_cut_as_the_harness_cuts_them(tokenizer):
    pair = encode_pair(tokenizer, "Tom has  ", "7 apples")
    assert pair.context == tokenizer.encode("Tom has", bos=True)
    assert pair.context + pair.continuation == tokenizer.encode("Tom has  7 apples", bos=True)
    assert encode_pair(tokenizer, "", " 7") == ([tokenizer.bos_id], tokenizer.encode(" 7"))
    assert encode_pair(tokenizer, "Tom", " 7", bos=False).context == tokenizer.encode("Tom")


def test_greedy_continuations_are_seen(make_model, tokenizer):
    engine = Engine(make_model(), tokenizer)
    context = tokenizer.encode("Tom has", bos=True)
    with torch.no_grad():
        order = engine.model(torch.tensor([context]))[0, -1].argsort(descending=True).tolist()
    for token, greedy in ((order[0], True), (order[1], False)):
        request = likelihood_request(Pair(context, [token]), None, 128, "r")
        (completion,) = engine.generate([request])
        assert read_likelihood(request, completion).greedy is greedy
