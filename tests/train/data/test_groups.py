"""Rows with behaviours and gates: what they may say, and which sequences they become."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.problems import load_problems, restyle, style_of
from evals.tasks import document
from mhc_model import ConfigError, DataError, ModelConfig
from mhc_model.config import Behaviour, MHCConfig
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data import (
    IGNORED,
    NO_GROUP,
    AnswerBatches,
    Batches,
    Examples,
    GroupedTokens,
    ReadAhead,
    RowGroup,
    check_groups,
    left_out,
    pack,
    pack_groups,
    prepare_answers,
    prepare_corpus,
)

BEHAVIOURS = {"direct": Behaviour(gates=(0.0, 0.3)), "worked": Behaviour(gates=(0.7, 1.0))}
SIZES = {"n_layers": 3, "n_heads": 2, "d_model": 16}
MODEL = ModelConfig(**SIZES, mhc=MHCConfig(), behaviours=BEHAVIOURS)
BOTH = (prepare_corpus, prepare_answers)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return str(path)


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is {number} + 1?", "answer": f"It is {number + 1}.", **more}


def mixed_rows(count: int = 90) -> list[dict[str, Any]]:
    """A third each without, with a behaviour and with gates."""
    says = [{}, {"behaviour": "worked"}, {"gates": [0.5, 0.5, 0.25]}]
    return [question(i, **says[i % 3]) for i in range(count)]


def texts_by_group(corpus: Any) -> dict[int, list[str]]:
    """The training documents of every group, out of the tokens."""
    tokens, tokenizer = corpus.tokens, corpus.tokenizer
    assert isinstance(tokens, GroupedTokens)
    found = {}
    for shard, group in zip(tokens.shards, tokens.shard_groups.tolist(), strict=True):
        starts = [*np.flatnonzero(shard == tokenizer.bos_id), len(shard)]
        found[group] = [
            tokenizer.decode(shard[a:b].tolist()) for a, b in itertools.pairwise(starts)
        ]
    return found


def test_documents_of_a_group_are_a_stream_of_their_own(tmp_path):
    path = write(tmp_path / "rows.jsonl", mixed_rows())
    corpus = prepare_corpus(DataConfig(files=(path,), validation_share=0.2, vocab_size=300))
    assert [(g.group, g.first) for g in corpus.groups] == [
        ("worked", f"{path} line 2"),
        ((0.5, 0.5, 0.25), f"{path} line 3"),
    ]
    texts = texts_by_group(corpus)
    assert sorted(texts) == [-1, 0, 1]
    assert {group: len(texts[group]) for group in (0, 1)} == {
        i: found.rows for i, found in enumerate(corpus.groups)
    }
    for group, own in texts.items():
        for text in own:
            assert int(text.split()[3]) % 3 == (group + 1)
    held_out = zip(corpus.validation, corpus.validation_groups, strict=True)
    assert all(int(text.split()[3]) % 3 == group + 1 for text, group in held_out)
    assert len(set(corpus.validation_groups)) == 3
    assert corpus.describe()["groups"][0]["group"] == "worked"
    # The same rows under other gates are another corpus.
    rows = [row | {"gates": 0.5} if "gates" in row else row for row in mixed_rows()]
    other = write(tmp_path / "other.jsonl", rows)
    again = prepare_corpus(DataConfig(files=(other,), validation_share=0.2, vocab_size=300))
    assert again.sha256 != corpus.sha256


def test_sequences_say_their_group_for_any_number_of_workers():
    shards = tuple(np.full(size, value) for value, size in ((7, 100), (8, 50), (9, 203)))
    tokens = GroupedTokens(shards, np.array([NO_GROUP, 0, 1]))
    batches = Batches(tokens, 8, 6, seed=2)
    assert [batches.count_sequences(group) for group in (-1, 0, 1, 2)] == [12, 6, 25, 0]
    seen = []
    for step in range(1, 1 + 43 // 6):
        groups = batches.groups(step, 0, 6)
        inputs, targets = batches.sequences(step, 0, 6)
        assert (inputs == 8 + groups[:, None]).all()
        assert inputs.equal(targets)
        halves = [batches.groups(step, start, start + 3) for start in (0, 3)]
        assert groups.tolist() == [*halves[0].tolist(), *halves[1].tolist()]
        ahead = ReadAhead(batches, range(3, 6), 3)
        assert ahead.sequences(step, 3, 6)[0].equal(inputs[3:])
        ahead.close()
        seen += groups.tolist()
    assert np.bincount(np.array(seen) + 1).tolist()[1] <= 6
    plain = Batches(np.arange(100), 8, 6, seed=2)
    assert plain.groups(3, 0, 6).tolist() == [-1] * 6


def test_examples_of_different_groups_share_no_sequence():
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 30, 300)
    groups = generator.integers(-1, 3, 300)
    ends = np.cumsum(sizes)
    tokens = np.repeat(groups + 10, sizes).astype(np.uint32)
    learned = np.concatenate([np.arange(size) >= 1 for size in sizes])
    examples = Examples(tokens, learned, ends, groups)
    packed = pack_groups(examples, 24, fill=0)
    assert left_out(examples, 24) > 0
    for inputs, targets, group in zip(*packed, strict=True):
        assert set(inputs.tolist()) <= {group + 10, 0}
        assert set(targets.tolist()) <= {group + 10, IGNORED}
    kept = np.repeat(sizes <= 25, sizes)
    assert (packed.targets != IGNORED).sum() == (kept & learned).sum()
    # Each group as if it were alone.
    for group in range(-1, 3):
        own = np.flatnonzero(groups == group)
        parts = [np.arange(ends[i] - sizes[i], ends[i]) for i in own]
        alone = Examples(
            np.concatenate([tokens[part] for part in parts]),
            np.concatenate([learned[part] for part in parts]),
            np.cumsum(sizes[own]),
        )
        inputs, targets = pack(alone, 24, fill=0)
        assert np.array_equal(packed.inputs[packed.groups == group], inputs)
        assert np.array_equal(packed.targets[packed.groups == group], targets)
    batches = AnswerBatches(examples, 24, 16, seed=1, fill=0)
    for step in (1, 5, 30):
        inputs, _ = batches.sequences(step, 4, 16)
        assert (inputs[:, 0] == batches.groups(step, 4, 16) + 10).all()
    assert batches.count_sequences(2) == (packed.groups == 2).sum()


@pytest.mark.parametrize("names", [("question", "answer"), ("instruction", "output")])
def test_rows_of_instruction_data_have_groups_too(tmp_path, names):
    rows = [
        {names[0]: f"Say {i}.", names[1]: f"{i}", "input": "now" if i % 5 else "", **says}
        for i, says in enumerate([{"behaviour": "direct"}, {"gates": 1}, {}] * 30)
    ]
    path = write(tmp_path / "train.jsonl.gz", rows)
    config = DataConfig(files=(str(tmp_path),), validation_share=0.2, vocab_size=280)
    corpus = prepare_answers(config)
    assert [found.group for found in corpus.groups] == ["direct", (1.0,)]
    assert corpus.groups[1].first == f"{path} line 2"
    for examples, count in ((corpus.training, corpus.documents), (corpus.held_out, None)):
        ends = examples.ends.tolist()
        assert count in (None, len(ends))
        for start, end, group in zip([0, *ends], ends, examples.groups.tolist(), strict=False):
            text = corpus.tokenizer.decode(examples.tokens[start:end].tolist())
            number = int(text.split("Answer:")[1])
            assert group == [0, 1, -1][number % 3]
    rows_of = [found.rows for found in corpus.groups]
    assert rows_of == [(corpus.training.groups == group).sum() for group in (0, 1)]
    assert prepare_answers(config).sha256 == corpus.sha256


@pytest.mark.parametrize("prepare", BOTH)
def test_a_question_is_held_out_in_all_its_styles(tmp_path, prepare):
    problems = load_problems("builtin:1,2", "train", 150)
    rows = [
        {"question": p.question, "answer": restyle(p, style).answer, "behaviour": style}
        for p in problems
        for style in ("direct", "worked")
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    corpora = [
        prepare(DataConfig(files=(path,), validation_share=0.2, style_words=words, vocab_size=300))
        for words in (False, True)
    ]
    sides = []
    for corpus in corpora:
        questions = [text.split("\nAnswer:")[0] for text in corpus.validation]
        questions = [text.removesuffix(" (direct)").removesuffix(" (worked)") for text in questions]
        assert 10 < len(set(questions)) < 60
        assert all(questions.count(question) == 2 for question in questions)
        assert corpus.documents + len(questions) == 300
        sides.append(questions)
    assert sides[0] == sides[1], "a plain model is measured on the same questions"


@pytest.mark.parametrize("prepare", BOTH)
def test_built_in_problems_come_once_for_each_behaviour(prepare):
    config = DataConfig(
        builtin_levels=(1, 2),
        builtin_count=40,
        builtin_behaviours=("short", "worked", "brief"),
        validation_documents=12,
        vocab_size=300,
    )
    behaviours = {
        "short": Behaviour(gates=(0.0, 0.2), style="direct"),
        "brief": Behaviour(gates=(0.4, 0.6)),
        "worked": Behaviour(gates=(0.8, 1.0)),
    }
    corpus = prepare(config, behaviours)
    assert corpus.documents == 120
    assert [(g.group, g.rows) for g in corpus.groups] == [
        ("short", 40),
        ("worked", 40),
        ("brief", 40),
    ]
    assert len(corpus.validation) == 12
    styles = ["direct", "worked", "brief"]
    for text, group in zip(corpus.validation, corpus.validation_groups, strict=True):
        assert style_of(text.split("Answer:")[1]) == styles[group]
    questions = [text.split("\nAnswer:")[0] for text in corpus.validation]
    assert all(questions.count(question) == 3 for question in questions)
    if prepare is prepare_corpus:
        problems = load_problems("builtin:1,2", "train", 40)
        for group, style in enumerate(styles):
            expected = [document(restyle(problem, style)) for problem in problems]
            assert sorted(texts_by_group(corpus)[group]) == sorted(expected)


@pytest.mark.parametrize("prepare", BOTH)
def test_words_stand_in_for_gates(tmp_path, prepare):
    config = DataConfig(
        files=(write(tmp_path / "a.jsonl", [question(i, behaviour="kind") for i in range(40)]),),
        validation_share=0.3,
        builtin_levels=(1,),
        builtin_count=30,
        builtin_behaviours=("direct", "worked"),
        style_words=True,
        vocab_size=300,
    )
    corpus = prepare(config)
    assert corpus.groups == ()
    assert corpus.validation_groups == ()
    assert {text.split(" (")[1].split(")")[0] for text in corpus.validation} == {
        *("kind", "direct", "worked")
    }
    for text in corpus.validation:
        assert text.split("\nAnswer:")[0].endswith((" (kind)", " (direct)", " (worked)"))
    words = {"kind": Behaviour(gates=(0, 1)), **BEHAVIOURS}
    assert prepare(config, words).sha256 == corpus.sha256
    with pytest.raises(DataError, match=r"a\.jsonl line 1 has behaviour 'kind'; allowed: direct"):
        prepare(config, BEHAVIOURS)


TEXT = {"text": "Just a text."}


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"behaviour": "direct", "gates": 0.1}, "has behaviour 'direct' and gates 0.1; allowed: o"),
        ({"behaviour": "two words"}, "has behaviour 'two words'; a name has 1 to 64 letters"),
        ({"behaviour": "policy"}, "is none of learned, policy"),
        ({"behaviour": 3}, "has behaviour 3; a name has"),
        ({"gates": 1.5}, r"has gates 1.5; allowed: a number in \[0, 1\], or a list of 1, L or 2L"),
        ({"gates": [0.5, -0.1]}, r"has gates \[0.5, -0.1\]; allowed"),
        ({"gates": []}, r"has gates \[\]; allowed"),
        ({"gates": "direct"}, "has gates 'direct'; allowed"),
        ({"gates": [True]}, r"has gates \[True\]; allowed"),
        ({"gates": [[0.1]]}, r"has gates \[\[0.1\]\]; allowed"),
        ({"gates": float("nan")}, "has gates nan; allowed"),
    ],
)
@pytest.mark.parametrize("prepare", BOTH)
def test_what_a_row_may_not_say_is_named_with_file_and_line(tmp_path, says, message, prepare):
    path = write(tmp_path / "rows.jsonl", [question(0), question(1, **says)])
    with pytest.raises(DataError, match=rf"rows\.jsonl line 2 .*{message}"):
        prepare(DataConfig(files=(path,)))
    if prepare is prepare_corpus:
        path = write(tmp_path / "text.jsonl", [TEXT, TEXT | says])
        with pytest.raises(DataError, match=rf"text\.jsonl line 2 .*{message}"):
            prepare(DataConfig(files=(path,)))


def test_nothing_is_said_by_null_and_texts_have_groups(tmp_path):
    rows = [{"text": f"text {i}", "behaviour": None, "gates": None} for i in range(50)]
    path = write(tmp_path / "rows.jsonl", rows)
    config = DataConfig(files=(path,), validation_share=0.3, vocab_size=280)
    corpus = prepare_corpus(config)
    assert corpus.groups == ()
    assert isinstance(corpus.tokens, np.ndarray)
    write(tmp_path / "rows.jsonl", [row | {"behaviour": "kind"} for row in rows])
    assert prepare_corpus(config).groups[0].group == "kind"
    words = config.model_copy(update={"style_words": True})
    with pytest.raises(DataError, match=r"line 1 has behaviour 'kind' and 'text': there is no que"):
        prepare_corpus(words)


def test_what_a_model_does_not_know_is_named_with_what_it_does():
    def check(group: Any, model: ModelConfig = MODEL) -> None:
        check_groups([RowGroup(group, 5, "rows.jsonl line 7")], model)

    for good in ("direct", "worked", (0.5,), (0.1, 0.2, 0.3), (0.5,) * 6):
        check(good)
    where = r"^rows\.jsonl line 7 has "
    with pytest.raises(DataError, match=where + "behaviour 'loud'; the names .* direct, worked"):
        check("loud")
    with pytest.raises(
        DataError, match=where + r"gates \[0.5, 0.5\]: 2 gates given; allowed: 1 .*"
    ):
        check((0.5, 0.5))
    none = MODEL.model_copy(update={"behaviours": {}})
    with pytest.raises(DataError, match=where + "behaviour 'direct'; .* none; declare it"):
        check("direct", none)
    plain = ModelConfig(**SIZES)
    for group, shown in (("direct", "behaviour 'direct'"), ((0.5,), "gates 0.5")):
        with pytest.raises(DataError, match=where + shown + r", but .* plain .* data\.style_words"):
            check(group, plain)


def test_names_without_a_style_or_unknown_are_refused():
    config = DataConfig(builtin_levels=(1,), builtin_behaviours=("direct", "kind"))
    with pytest.raises(
        ConfigError, match=r"'kind', which is no style .*give behaviours\.kind\.sty"
    ):
        prepare_corpus(config)
    with pytest.raises(ConfigError, match=r"'kind'; the names in behaviours are direct, worked"):
        prepare_answers(config, BEHAVIOURS)


def test_held_out_rows_alone_may_have_a_group(tmp_path):
    path = write(tmp_path / "a.jsonl", [question(i) for i in range(20)])
    held = write(tmp_path / "b.jsonl", [question(30), question(31, behaviour="direct")])
    for prepare in BOTH:
        corpus = prepare(DataConfig(files=(path,), validation_files=(held,), vocab_size=280))
        assert corpus.groups == (RowGroup("direct", 0, f"{held} line 2"),)
        assert corpus.validation_groups == (-1, 0)


def test_words_need_no_tokens_of_their_own():
    """`Tokenizer.train` sees the documents as they are learned."""
    config = DataConfig(
        builtin_levels=(1,), builtin_count=200, builtin_behaviours=("direct",), style_words=True
    )
    tokenizer = prepare_corpus(config).tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert len(tokenizer.encode(" (direct)")) <= 3
