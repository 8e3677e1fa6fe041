"""Fine-tuning on questions with answers: the loss is on the answers, and examples stay whole.

An example is what evaluation asks and hopes for: the prompt `Question: ...\\nAnswer:`, then the
answer and the token that ends a text. Whole examples lie side by side in sequences of one length;
the tokens of prompts, and those that fill a sequence up, are read but not learned. Examples of
different groups (`train.data.groups`) never share a sequence.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.problems import Problem
from evals.tasks import document, prompt
from mhc_model.config import Behaviour
from mhc_model.errors import ConfigError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data.batches import Batches
from train.data.corpus import Corpus, choose_tokenizer, fingerprint, number_groups
from train.data.groups import NO_GROUP
from train.data.questions import split_questions

IGNORED = -1  # a target that is not learned


class Examples(NamedTuple):
    """Tokenized examples, one after another."""

    tokens: np.ndarray  # (count,) uint32
    learned: np.ndarray  # (count,) bool: the token is of an answer, or ends one
    ends: np.ndarray  # (examples,) int64: where each ends
    groups: np.ndarray | None = None  # (examples,) int64: of each, -1 of none; None: all of none


class Packed(NamedTuple):
    """Examples in sequences."""

    inputs: np.ndarray  # (sequences, context) int64
    targets: np.ndarray  # (sequences, context) int64, -1 where nothing is learned
    groups: np.ndarray  # (sequences,) int64: of all examples in it, -1 of none


@dataclass(frozen=True)
class AnswerCorpus(Corpus):
    """A corpus of examples; `validation` has the held-out ones as text.

    Attributes:
        training: what is learned.
        held_out: what is evaluated.
    """

    training: Examples = field(kw_only=True)
    held_out: Examples = field(kw_only=True)


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
        self.inputs, self.targets, self._groups = pack_groups(examples, context, fill)
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

    def groups(self, step: int, start: int, stop: int) -> Tensor:
        """Groups of the same sequences, (b,) int64: places in the corpus's, -1 of none."""
        return torch.from_numpy(self._groups[self._order.block_ids(step, start, stop)])

    def count_sequences(self, group: int) -> int:
        """How many an epoch has of a group."""
        return int((self._groups == group).sum())

    def weight(self, step: int) -> float:
        """Positions of a step for each that is learned: makes a mean over all one over those."""
        learned = int(self._learned[self._order.block_ids(step, 0, self.batch)].sum())
        return self.batch * self.context / learned


def left_out(examples: Examples, context: int) -> int:
    """How many examples are longer than a sequence."""
    return int((np.diff(examples.ends, prepend=0) > context + 1).sum())


def pack_groups(examples: Examples, context: int, fill: int) -> Packed:
    """Whole examples in few sequences, those of one group together; longer ones are left out."""
    if examples.groups is None:
        inputs, targets = pack(examples, context, fill)
        return Packed(inputs, targets, np.full(len(inputs), NO_GROUP, dtype=np.int64))
    order = np.argsort(examples.groups, kind="stable")
    present, starts = np.unique(examples.groups[order], return_index=True)
    parts = [pack(examples, context, fill, members) for members in np.split(order, starts[1:])]
    sizes = [len(inputs) for inputs, _ in parts]
    return Packed(
        np.concatenate([inputs for inputs, _ in parts]),
        np.concatenate([targets for _, targets in parts]),
        np.repeat(present, sizes),
    )


def pack(
    examples: Examples, context: int, fill: int, members: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Whole examples in as few sequences as the best-fit rule needs; longer ones are left out.

    Args:
        examples: tokenized.
        context: tokens of a sequence.
        fill: token that stands where no example does.
        members: (n,) int64 places of those that are packed; None packs all.

    Returns:
        inputs and targets, each (sequences, context) int64.
    """
    sizes = np.diff(examples.ends, prepend=0)
    starts = examples.ends - sizes
    members = np.arange(len(sizes)) if members is None else members
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), rising
    for example in members[np.argsort(-sizes[members], kind="stable")]:
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
    for row, own in enumerate(rows):
        at = 0
        for example in own:
            part = slice(starts[example], examples.ends[example])
            to = slice(at, at + int(sizes[example]))
            tokens[row, to], learned[row, to] = examples.tokens[part], examples.learned[part]
            at = to.stop
    targets = np.where(learned[:, 1:], tokens[:, 1:], IGNORED)
    return tokens[:, :-1].copy(), targets


def prepare_answers(config: DataConfig, behaviours: Mapping[str, Behaviour] = {}) -> AnswerCorpus:
    """Reads, splits and tokenizes examples.

    Args:
        config: the sources.
        behaviours: as for `prepare_corpus`.

    Raises:
        DataError: if a source is missing or malformed, or nothing is left to learn or to hold out.
        ConfigError: for shards, and if the tokenizer is none of what `DataConfig.tokenizer`
            accepts, or a behaviour of built-in problems is unknown or has no style.
    """
    if config.shards is not None:
        raise ConfigError(
            f"loss_on is 'answers', but data.shards is {config.shards}: shards hold texts; give "
            f"data.files or data.builtin_levels"
        )
    training, held_out, first = split_questions(config, behaviours)
    if not training or not held_out:
        raise DataError(
            f"{len(training)} training and {len(held_out)} held-out examples: both need at least "
            f"one; give more data, or another data.validation_share than {config.validation_share}"
        )
    groups, places = number_groups(
        first, [asked.group for asked in training], [asked.group for asked in held_out]
    )
    problems = [[asked.problem for asked in side] for side in (training, held_out)]
    tokenizer = choose_tokenizer(config, list(map(document, problems[0])))
    learned, evaluated = (
        tokenize(part, tokenizer)._replace(groups=own if groups else None)
        for part, own in zip(problems, places, strict=True)
    )
    texts = tuple(map(document, problems[1]))
    content = fingerprint(learned.tokens, tokenizer, texts, groups, places)
    return AnswerCorpus(
        tokens=learned.tokens,
        validation=texts,
        tokenizer=tokenizer,
        documents=len(training),
        sha256=hashlib.sha256(content.encode() + learned.learned.tobytes()).hexdigest(),
        groups=groups,
        validation_groups=tuple(places[1].tolist()) if groups else (),
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
