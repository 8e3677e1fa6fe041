"""How often a session over a long text comes to read what a question asks for, and at what cost.

    python -m benchmarks.recursion --books DIR --vocabulary gpt2.tiktoken
    python -m benchmarks.recursion --words 20000          # generated text, seconds

Facts are planted in texts (`benchmarks.planted_facts`), one session a question. A fact is *found*
if search returns a passage that holds the whole sentence, the model was given it, and the session
stayed within its budget. `answered` counts answers that hold the fact's key words: that is the
model's doing, and needs one that can read (`--checkpoint`). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.planted_facts import TEMPLATES, Planted, book_texts, generated_text, plant
from mhc_model import Decoder, Engine, ModelConfig
from mhc_model.recursion import (
    EngineModel,
    LanguageModel,
    Session,
    SessionSettings,
    TextIndex,
    index_for,
)
from mhc_model.tokenizer import Tokenizer

BUDGET_TOKENS = 4096
FACTS = 10  # planted in one text at a time


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    question: str
    at_boundary: bool
    rank: int | None  # of the first passage that holds the fact; None if none does
    found: bool
    answered: bool
    tokens: int
    ms: float


def ask_all(
    texts: Sequence[tuple[str, list[Planted]]],
    model: LanguageModel,
    settings: SessionSettings,
    indexed: Callable[[TextIndex, float], None] = lambda index, seconds: None,
) -> Iterator[Outcome]:
    """One session a planted fact; texts are indexed once each."""
    for text, facts in texts:
        started = time.perf_counter()
        index = index_for(text, model, settings)
        indexed(index, time.perf_counter() - started)
        for planted in facts:
            yield _ask(index, planted, model, settings)


def _ask(
    index: TextIndex, planted: Planted, model: LanguageModel, settings: SessionSettings
) -> Outcome:
    session = Session(index, model, settings)
    started = time.perf_counter()
    answer = session.ask(planted.question)
    ms = 1000 * (time.perf_counter() - started)
    holding = [planted.fact in passage.text for passage in answer.passages]
    rank = holding.index(True) + 1 if any(holding) else None
    read = [
        tuple(source[name] for name in ("start", "end"))
        for step in session.transcript.steps
        if step.verb == "map" and step.error is None
        for source in step.arguments["sources"]
    ]
    given = rank is not None and (
        (answer.passages[rank - 1].start, answer.passages[rank - 1].end) in read
    )
    return Outcome(
        planted.question,
        planted.at_boundary,
        rank,
        given and session.usage.total_tokens <= settings.budget_tokens,
        planted.answer.casefold() in (answer.text or "").casefold(),
        session.usage.total_tokens,
        ms,
    )


def planted_texts(
    raw: Sequence[str], index_sizes: tuple[int, int], seed: int
) -> list[tuple[str, list[Planted]]]:
    """FACTS facts in each text, of templates that go round."""
    return [
        plant(
            text,
            [(number * FACTS + i) % len(TEMPLATES) for i in range(FACTS)],
            seed * 1000 + number,
            *index_sizes,
        )
        for number, text in enumerate(raw)
    ]


def random_reader(tokenizer: Tokenizer, context: int = 1024) -> EngineModel:
    """A tiny model of random weights: it costs what a reader costs in tokens, and reads nothing."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, n_heads=2, d_model=32, max_seq_len=context
    )
    return EngineModel(Engine(Decoder(config), tokenizer, max_batch=8), embedding=None)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, object]:
    ranks = [outcome.rank for outcome in outcomes]
    boundary = [outcome for outcome in outcomes if outcome.at_boundary]
    return {
        "placements": len(outcomes),
        "found": sum(outcome.found for outcome in outcomes),
        "rank_1": sum(rank == 1 for rank in ranks),
        "at_boundary": len(boundary),
        "found_at_boundary": sum(outcome.found for outcome in boundary),
        "answered": sum(outcome.answered for outcome in outcomes),
        "tokens_median": statistics.median(outcome.tokens for outcome in outcomes),
        "tokens_most": max(outcome.tokens for outcome in outcomes),
        "ms_median": round(statistics.median(outcome.ms for outcome in outcomes), 1),
        "missed": [outcome.question for outcome in outcomes if not outcome.found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--books", type=Path, help="directory of *.txt.gz; none generates text")
    parser.add_argument("--vocabulary", type=Path, help="tiktoken file that counts the tokens")
    parser.add_argument("--checkpoint", help="the reader; none is a tiny one of random weights")
    parser.add_argument("--embedding", choices=("tokens", "hidden"), help="beside lexical search")
    parser.add_argument("--tokens", type=int, default=200_000, help="of one text from the books")
    parser.add_argument("--words", type=int, default=20_000, help="of one generated text")
    parser.add_argument("--texts", type=int, default=10, help=f"each with {FACTS} facts")
    parser.add_argument("--budget", type=int, default=BUDGET_TOKENS, help="tokens of one question")
    parser.add_argument("--k", type=int, default=6, help="passages searched for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SessionSettings.model_validate({"budget_tokens": options.budget, "k": options.k})
    if options.books is None:
        raw = [generated_text(options.words, options.seed + i) for i in range(options.texts)]
        tokenizer = Tokenizer.train(raw[:1], 2000)
    else:
        tokenizer = Tokenizer.from_tiktoken_file(options.vocabulary)
        raw = book_texts(options.books, tokenizer, options.tokens, options.texts)
    if options.checkpoint is None:
        model = random_reader(tokenizer)
    else:
        engine = Engine.from_checkpoint(options.checkpoint, max_batch=8)
        model = EngineModel(engine, embedding=options.embedding)
    seconds: list[float] = []
    sizes = index_for(raw[0], model, settings).sizes
    outcomes = []
    for outcome in ask_all(
        planted_texts(raw, sizes, options.seed),
        model,
        settings,
        lambda index, taken: seconds.append(taken),
    ):
        outcomes.append(outcome)
        print(json.dumps(asdict(outcome)), flush=True)
    report = summarise(outcomes)
    report |= {"budget_tokens": options.budget, "k": options.k, "passage_chars": sizes[0]}
    report |= {"text_tokens": [len(tokenizer.encode(text)) for text in raw]}
    report |= {"index_s": round(statistics.median(seconds), 3)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
