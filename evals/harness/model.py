"""lm-evaluation-harness's model `mhc-gates`: a checkpoint of ours with a choice of gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.gate_choice import GateChoice
from evals.settings import MAX_TOKENS
from evals.tasks import Item, Pair, encode_pair, likelihood_request, read_likelihood, run_items
from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import ConfigError, EngineError


class GatedLM(LM):
    """A checkpoint with a choice of gates, as the harness sees it."""

    def __init__(
        self,
        checkpoint: str,
        gates: str | float = "learned",
        bos: bool = True,
        batch_size: int | str | None = None,
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        """Loads the checkpoint.

        Args:
            checkpoint: checkpoint or run directory.
            gates: as `--gates` of `python -m evals`.
            bos: put the document separator before every text, as training does.
            batch_size: sequences that run at once; 32 if it is not a number.
            device: None is CUDA if there is one.
            **ignored: what the harness gives every model, such as `max_batch_size`.

        Raises:
            MHCError: of the checkpoint or the gates.
        """
        super().__init__()
        self.bos = bos
        self.choice = GateChoice(str(gates))
        batch = int(batch_size) if str(batch_size or "").isdigit() else 32
        self.engine = Engine.from_checkpoint(checkpoint, batch, device=device or "auto")
        if self.engine.tokenizer is None:
            raise EngineError(f"{checkpoint} has no tokenizer; the harness needs one")
        self.choice.check(self.engine)
        self.tokenizer = self.engine.tokenizer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        pairs = [encode_pair(self.tokenizer, *request.args, self.bos) for request in requests]
        return [(found[0], found[1]) for found in self._score(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each whole text, in windows with as much context as there is."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tokenizer.encode(request.args[0]),
                self.tokenizer.start_id,
                # One less: the engine also feeds the last token, to which nothing is asked.
                self.engine.max_seq_len - 1,
                1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(Pair(*window))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(pairs), strict=True):
            sums[owner] += logprob
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continues each context up to a stop string."""
        prompts, sampling = [], []
        for request in requests:
            context, arguments = request.args
            parameters = _sampling(arguments)
            room = self.engine.max_seq_len - parameters.max_tokens
            if room < 1:
                raise EngineError(
                    f"max_gen_toks {parameters.max_tokens} leaves no room for a prompt in a "
                    f"context of {self.engine.max_seq_len}; give fewer"
                )
            prompts.append(self.tokenizer.encode(context, bos=self.bos)[-room:])
            sampling.append(parameters)
        rows = self.choice.rows(self.engine, prompts)
        items = []
        for index, (prompt, parameters) in enumerate(zip(prompts, sampling, strict=True)):
            gates = None if rows is None else rows[index]
            items.append(_item(index, Request(prompt, gates, parameters, str(index))))
        texts = dict(self._run(items))
        return [texts[str(index)].text or "" for index in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        return f"mhc-gates-{self.engine.checkpoint_hash}"

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = self.choice.rows(self.engine, [pair.context for pair in pairs])
        found: dict[str, tuple[float, bool]] = {}
        requests: dict[str, Request] = {}
        for index, pair in enumerate(pairs):
            gates = None if rows is None else rows[index]
            request = likelihood_request(pair, gates, self.engine.max_seq_len, str(index))
            if request is not None:
                requests[str(index)] = request
            elif not pair.continuation:
                found[str(index)] = (0.0, True)
            else:
                raise EngineError(
                    f"a continuation of {len(pair.continuation)} tokens does not fit the context "
                    f"of {self.engine.max_seq_len}"
                )
        items = [_item(identity, request) for identity, request in requests.items()]
        for identity, completion in self._run(items):
            found[identity] = tuple(read_likelihood(requests[identity], completion))
        return [found[str(index)] for index in range(len(pairs))]

    def _run(self, items: Sequence[Item]) -> Iterator[tuple[str, Completion]]:
        for item, completions in run_items(self.engine, items):
            yield item.id, completions[0]


def _item(identity: int | str, request: Request) -> Item:
    return Item(str(identity), (request,), lambda completions: {})


def _sampling(arguments: dict[str, Any]) -> SamplingParams:
    """The harness's generation arguments as ours.

    Raises:
        ConfigError: for one that the engine does not have.
    """
    values = dict(normalize_gen_kwargs(arguments, MAX_TOKENS))
    until = values.pop("until")
    sampling = SamplingParams(
        max_tokens=values.pop("max_gen_toks"),
        temperature=float(values.pop("temperature", 0.0)),
        top_p=float(values.pop("top_p", 1.0)),
        top_k=int(values.pop("top_k", 0)),
        stop=tuple(text for text in until if text),
    )
    values.pop("do_sample", None)
    if values:
        raise ConfigError(f"the engine has no {', '.join(values)}; leave them out of gen_kwargs")
    return sampling
