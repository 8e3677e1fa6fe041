"""Fine-tuning on questions with answers: the loss is on the answers, and examples stay whole.

An example is what evaluation asks and hopes for: the prompt `Question: ...\\nAnswer:`, then the
answer and the token that ends a text. Whole examples lie side by side in sequences of one length;
the tokens of prompts, and those that fill a sequence up, are read but not learned.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.problems import Problem, RowError, find_rows, load_problems, parse_rows
from evals.tasks import document, prompt
from mhc_model.errors import ConfigError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data.batches import Batches
from train.data.corpus import Corpus, choose_tokenizer, fingerprint, spread
from train.data.documents import is_held_out

IGNORED = -1  # a target that is not learned
# Keys of a row that hold its question and its answer. The first pair that is there counts; what
# stands under "input" belongs to the question.
FIELDS = (
    ("question", "answer"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
# Configurations of data sets that have no default one.
SUBSETS = {"openai/gsm8k": "main"}
ACCEPTED = (
    "accepted: a file of JSON lines (.jsonl or .jsonl.gz), a directory with {split}.jsonl, or a "
    "hub name such as openai/gsm8k"
)


class Examples(NamedTuple):
    """Tokenized examples, one after another."""

    tokens: np.ndarray  # (count,) uint32
    learned: np.ndarray  # (count,) bool: the token is of an answer, or ends one
    ends: np.ndarray  # (examples,) int64: where each ends


@dataclass(frozen=True)
class AnswerCorpus(Corpus):
    """A corpus of examples; `validation` has the held-out ones as text.

    Attributes:
        training: what is learned.
        held_out: what is evaluated.
    """

    training: Examples
    held_out: Examples


class AnswerBatches:
    """The batches of all steps; the same face as `train.data.Batches`."""

    def __init__(self, examples: Examples, context: int, batch: int, seed: int, fill: int) -> None:
        """Puts examples into sequences.

        Args:
            examples: of the corpus.
            context: tokens of a sequence.
            batch: sequences of a step, all workers together.
            seed: of their order.
            fill: token that stands where no example does.

        Raises:
            DataError: if they fill less than one step.
        """
        self.inputs, self.targets = pack(examples, context, fill)
        self.blocks, self.context = len(self.inputs), context
        if self.blocks < batch:
            raise DataError(
                f"the examples fill {self.blocks} sequences of {context} tokens, but one step "
                f"takes {batch}; give more data or lower total_batch_tokens"
                f" ({left_out(examples, context)} longer ones are left out)"
            )
        # The order of `Batches`, with one sequence for every block.
        self._order = Batches(np.zeros(self.blocks + 1, np.uint16), 1, batch, seed)
        self._learned = (self.targets != IGNORED).sum(axis=1)
        self.batch = batch

    def sequences(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the sequences start .. stop of a step, each (b, t) int64.

        Targets that are not learned are -1.
        """
        ids = self._order.block_ids(step, start, stop)
        return torch.from_numpy(self.inputs[ids]), torch.from_numpy(self.targets[ids])

    def weight(self, step: int) -> float:
        """Positions of a step for each that is learned: makes a mean over all one over those."""
        learned = int(self._learned[self._order.block_ids(step, 0, self.batch)].sum())
        return self.batch * self.context / learned


def left_out(examples: Examples, context: int) -> int:
    """How many examples are longer than a sequence."""
    return int((np.diff(examples.ends, prepend=0) > context + 1).sum())


def pack(examples: Examples, context: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole examples in as few sequences as the best-fit rule needs; longer ones are left out.

    Returns:
        inputs and targets, each (sequences, context) int64.
    """
    sizes = np.diff(examples.ends, prepend=0)
    starts = examples.ends - sizes
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), rising
    for example in np.argsort(-sizes, kind="stable"):
        size = int(sizes[example])
        if size > context + 1:
            continue
        found = bisect.bisect_left(room, (size, 0))
        left, row = room.pop(found) if found < len(room) else (context + 1, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(int(example))
        bisect.insort(room, (left - size, row))
    tokens = np.full((len(rows), context + 1), fill, dtype=np.int64)
    learned = np.zeros((len(rows), context + 1), dtype=bool)
    for row, members in enumerate(rows):
        at = 0
        for example in members:
            part = slice(starts[example], examples.ends[example])
            to = slice(at, at + int(sizes[example]))
            tokens[row, to], learned[row, to] = examples.tokens[part], examples.learned[part]
            at = to.stop
    targets = np.where(learned[:, 1:], tokens[:, 1:], IGNORED)
    return tokens[:, :-1].copy(), targets


def prepare_answers(config: DataConfig) -> AnswerCorpus:
    """Reads, splits and tokenizes examples.

    Raises:
        DataError: if a source is missing or malformed, or nothing is left to learn or to hold out.
        ConfigError: for shards, and if the tokenizer is none of what `DataConfig.tokenizer`
            accepts.
    """
    if config.shards is not None:
        raise ConfigError(
            f"loss_on is 'answers', but data.shards is {config.shards}: shards hold texts; give "
            f"data.files or data.builtin_levels"
        )
    training, held_out = _split_problems(config)
    if not training or not held_out:
        raise DataError(
            f"{len(training)} training and {len(held_out)} held-out examples: both need at least "
            f"one; give more data, or another data.validation_share than {config.validation_share}"
        )
    tokenizer = choose_tokenizer(config, list(map(document, training)))
    learned, evaluated = (tokenize(part, tokenizer) for part in (training, held_out))
    texts = tuple(map(document, held_out))
    content = fingerprint(learned.tokens, tokenizer, texts)
    return AnswerCorpus(
        tokens=learned.tokens,
        validation=texts,
        tokenizer=tokenizer,
        documents=len(training),
        sha256=hashlib.sha256(content.encode() + learned.learned.tobytes()).hexdigest(),
        training=learned,
        held_out=evaluated,
    )


def tokenize(problems: Sequence[Problem], tokenizer: Tokenizer) -> Examples:
    """Prompt and answer apart, as an engine sees them: it reads the one and writes the other."""
    prompts = tokenizer.encode_batch(list(map(prompt, problems)), bos=True)
    answers = tokenizer.encode_batch([f" {problem.answer}" for problem in problems])
    rows = [
        (first, [*second, tokenizer.eos_id]) for first, second in zip(prompts, answers, strict=True)
    ]
    tokens = [np.array(first + second, dtype=np.uint32) for first, second in rows]
    learned = [np.arange(len(first) + len(second)) >= len(first) for first, second in rows]
    ends = np.cumsum([len(row) for row in tokens])
    return Examples(np.concatenate(tokens), np.concatenate(learned), ends)


def _split_problems(config: DataConfig) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems, chosen as `prepare_corpus` chooses documents."""
    training: list[Problem] = []
    held_out: list[Problem] = []
    if config.builtin_levels:
        source = "builtin:" + ",".join(map(str, config.builtin_levels))
        training += load_problems(source, "train", config.builtin_count)
        held_out += load_problems(source, "test", config.validation_documents)
    read = [problem for source in config.files for problem in _read(source, "train")]
    if config.validation_files:
        apart = [problem for source in config.validation_files for problem in _read(source, "test")]
    else:
        share = config.validation_share
        apart = [problem for problem in read if is_held_out(document(problem), share)]
        read = [problem for problem in read if not is_held_out(document(problem), share)]
    return training + read, held_out + spread(apart, config.validation_documents)


def _read(source: str, split: str) -> list[Problem]:
    rows, name = find_rows(source, split, SUBSETS.get(source), ACCEPTED)
    parsed = parse_rows(rows, lambda row, number: _example(row, f"{name}-{number}"), None, source)
    if parsed.malformed:
        raise DataError(parsed.malformed[0])
    return parsed.problems


def _example(row: Any, name: str) -> Problem:
    fields = row if type(row) is dict else {}
    for question, answer in FIELDS:
        match fields.get(question), fields.get(answer), fields.get("input", ""):
            case str(asked), str(given), str(more) if asked.strip() and given.strip():
                return Problem(name, f"{asked}\n{more}" if more.strip() else asked, given)
    pairs = ", ".join(f"{question!r} and {answer!r}" for question, answer in FIELDS)
    raise RowError(f"has none of {pairs} as texts that are not empty: {str(row)[:80]!r}")
