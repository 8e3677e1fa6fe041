"""Documents, tokens and the order of blocks."""

import gzip
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.tasks.gsm8k_pure import document, load_problems
from mhc_model.errors import CheckpointError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data import Batches, ReadAhead, choose_tokenizer, prepare_corpus, read_documents
from train.data.batches import permute
from train.data.documents import LONGEST_TEXT_DOCUMENT

BUILTIN = DataConfig(builtin_levels=(1,), builtin_count=300, validation_documents=20)


@pytest.fixture(scope="module")
def corpus():
    return prepare_corpus(BUILTIN)


def test_builtin_corpus_is_documents_behind_separators(corpus):
    tokens, tokenizer = corpus.tokens, corpus.tokenizer
    assert tokens.dtype == np.uint16
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    assert len(starts) == corpus.documents == 300
    assert starts[0] == 0
    expected = document(load_problems("builtin:1", "train", 300)[1])
    assert tokenizer.decode(tokens[starts[1] : starts[2]].tolist()) == expected


def test_held_out_problems_are_of_the_test_split(corpus):
    held_out = [document(problem) for problem in load_problems("builtin:1", "test", 20)]
    assert list(corpus.validation) == held_out


def test_the_same_configuration_gives_the_same_corpus(corpus):
    again = prepare_corpus(BUILTIN)
    assert again.sha256 == corpus.sha256
    assert np.array_equal(again.tokens, corpus.tokens)
    other = prepare_corpus(BUILTIN.model_copy(update={"validation_documents": 21}))
    assert other.sha256 != corpus.sha256


def test_text_and_rows_plain_and_gzip(tmp_path):
    rows = [{"text": "one"}, {"question": "1+1?", "answer": "2\n#### 2"}]
    content = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "rows.jsonl").write_text(content)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(content)
    expected = ["one", "Question: 1+1?\nAnswer: 2\n#### 2"]
    assert list(read_documents(str(tmp_path / "rows.jsonl"))) == expected
    assert list(read_documents(str(tmp_path / "rows.jsonl.gz"))) == expected
    text = "".join(f"Line {i} of a long book.\n" + "\n" * (i % 5 == 0) for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    with gzip.open(tmp_path / "book.txt.gz", "wt") as file:
        file.write(text)
    parts = list(read_documents(str(tmp_path / "book.txt")))
    assert "".join(parts) == text
    assert len(parts) > 3
    assert list(read_documents(str(tmp_path / "book.txt.gz"))) == parts


def test_a_share_of_files_is_held_out_and_not_trained_on(tmp_path):
    rows = "".join(json.dumps({"text": f"document number {i}"}) + "\n" for i in range(500))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = DataConfig(files=(str(tmp_path / "rows.jsonl"),), validation_share=0.1)
    corpus = prepare_corpus(config)
    assert 20 <= len(corpus.validation) <= 90
    assert corpus.documents + len(corpus.validation) == 500
    training = corpus.tokenizer.decode(corpus.tokens.tolist())
    assert not any(f"{text}document" in training for text in corpus.validation)


def test_named_validation_files_are_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("training text\n")
    (tmp_path / "b.txt").write_text("held-out text\n")
    corpus = prepare_corpus(
        DataConfig(files=(str(tmp_path / "a.txt"),), validation_files=(str(tmp_path / "b.txt"),))
    )
    assert corpus.validation == ("held-out text\n",)
    assert corpus.documents == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": ', r"x.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"question": "a"}\n', r"x.jsonl line 1 has neither"),
        ("x.jsonl", b"[1]\n", r"x.jsonl line 1 has neither"),
        ("x.txt", b"\n\n", r"x.txt is empty"),
        ("x.txt", b"\xff\xfe", r"x.txt cannot be read"),
        ("x.txt.gz", b"no gzip", r"x.txt.gz cannot be read"),
        ("x.txt.gz", gzip.compress(b"a text\n" * 99)[:-20], r"x.txt.gz cannot be read"),
        ("x.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', r"x.jsonl line 3 is not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(str(tmp_path / name)))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        prepare_corpus(DataConfig(files=(str(tmp_path / "none.txt"),)))


def test_tokenizer_choices(tmp_path, corpus):
    directory = tmp_path / "tokenizer"
    corpus.tokenizer.save(directory)
    for choice in (directory, directory / "tokenizer.tiktoken"):
        config = BUILTIN.model_copy(update={"tokenizer": str(choice)})
        tokenizer = choose_tokenizer(config, [])
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.vocab_size == corpus.tokenizer.vocab_size
    with pytest.raises(DataError, match="does not exist"):
        choose_tokenizer(BUILTIN.model_copy(update={"tokenizer": "no/such.tiktoken"}), [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        choose_tokenizer(BUILTIN.model_copy(update={"tokenizer": str(tmp_path / "empty")}), [])


@pytest.mark.parametrize("paragraphs", [True, False])
@pytest.mark.parametrize("rows", [True, False])
def test_ranges_of_a_file_share_nothing_and_miss_nothing(tmp_path, rows, paragraphs):
    lines = [f"Zeile {i}: größer, Ж, 漢字, \N{SLOTH}" for i in range(3000)]
    content = "".join(
        f"{line}\n" + "\n" * (paragraphs and i % 3 == 0) for i, line in enumerate(lines)
    )
    path = tmp_path / "book.txt"
    if rows:
        path = tmp_path / "rows.jsonl"
        content = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(content, encoding="utf-8")
    size = path.stat().st_size
    for part in (size, size // 2 - 1, 9999, 1024):
        texts = []
        for start in range(0, size, part):
            stop = start + part if start + part < size else None
            texts += read_documents(str(path), start, stop)
        if rows:
            assert texts == lines
        else:
            assert "".join(texts) == content
            assert all(text.startswith("Zeile") for text in texts)


def test_text_without_blank_lines_or_line_ends_is_cut_too(tmp_path):
    path = tmp_path / "endless.txt"
    for content in ("größer " * 100_000, "größer Ж\n" * 80_000):
        path.write_text(content, encoding="utf-8")
        texts = list(read_documents(str(path)))
        assert "".join(texts) == content
        assert max(map(len, texts)) < 2 * LONGEST_TEXT_DOCUMENT
        size = path.stat().st_size
        parts = [
            read_documents(str(path), start, start + 50_001) for start in range(0, size, 50_001)
        ]
        assert "".join(text for part in parts for text in part) == content


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_permutation_sends_every_place_elsewhere(size, seed):
    keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


def test_a_permutation_is_as_even_as_a_random_one():
    size, bins, draws = 1000, 10, 400
    counts = np.zeros((bins, bins))
    neighbours = 0
    for seed in range(draws):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
        order = permute(np.arange(size), size, keys)
        np.add.at(counts, (np.arange(size) * bins // size, order * bins // size), 1)
        neighbours += np.sum(np.abs(np.diff(order)) == 1)
    expected = draws * size / bins**2
    # 81 degrees of freedom: a random permutation is beyond 140 once in 20,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 140
    assert neighbours / draws == pytest.approx(2, abs=0.4)


def test_a_permutation_of_a_large_corpus_takes_no_table():
    keys = np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64)
    size = 10**12 + 7
    ids = permute(np.arange(size - 10_000, size), size, keys)
    assert len(set(ids.tolist())) == 10_000
    assert 0 <= ids.min() < ids.max() < size


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(2, 400),
    context=st.integers(1, 8),
    batch=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_every_epoch_visits_every_block_once(count, context, batch, seed):
    tokens = np.arange(count, dtype=np.uint16)
    blocks = (count - 1) // context
    if blocks < batch:
        with pytest.raises(DataError, match=f"{count} tokens"):
            Batches(tokens, context, batch, seed)
        return
    batches = Batches(tokens, context, batch, seed)
    steps = 3 * blocks // batch + 1
    order = np.concatenate([batches.block_ids(step, 0, batch) for step in range(1, steps + 1)])
    first, second = order[:blocks], order[blocks : 2 * blocks]
    assert sorted(first) == sorted(second) == list(range(blocks))
    if blocks > 20:
        assert list(first) != list(second)


def test_a_batch_is_a_function_of_the_step_and_splits_over_workers():
    tokens = np.arange(1000, dtype=np.uint16)
    batches, fresh = (Batches(tokens, 8, 12, seed=3) for _ in range(2))
    for step in range(1, 40):
        batches.sequences(step, 0, 12)
    inputs, targets = batches.sequences(25, 0, 12)
    again, _ = fresh.sequences(25, 0, 12)
    assert inputs.equal(again)
    halves = [fresh.sequences(25, 0, 6)[0], fresh.sequences(25, 6, 12)[0]]
    assert inputs.tolist() == [*halves[0].tolist(), *halves[1].tolist()]
    assert (targets == inputs + 1).all()
    assert (inputs[:, 0] % 8 == 0).all()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_reading_ahead_changes_nothing(workers):
    tokens = np.arange(1000, dtype=np.uint16)
    batches = Batches(tokens, 8, 12, seed=3)
    own = 12 // workers
    for rank in range(workers):
        part = range(rank * own, (rank + 1) * own)
        ahead = ReadAhead(Batches(tokens, 8, 12, seed=3), part, device_batch=3)
        # In order over two epochs, a jump back as after a resume, and a question out of order.
        for step in [*range(1, 23), 7, 8, 9, 30]:
            for start in range(part.start, part.stop, 3):
                inputs, targets = ahead.sequences(step, start, start + 3)
                expected = batches.sequences(step, start, start + 3)
                assert inputs.equal(expected[0])
                assert targets.equal(expected[1])
        ahead.close()
        assert ahead.sequences(5, 0, 12)[0].equal(batches.sequences(5, 0, 12)[0])
        ahead.close()


def test_batches_are_read_before_they_are_asked_for():
    seen = []

    class Watched(Batches):
        def sequences(self, step, start, stop):
            seen.append((step, start))
            return super().sequences(step, start, stop)

    ahead = ReadAhead(Watched(np.arange(1000), 8, 12, seed=3), range(6, 12), 3, depth=3)
    ahead.sequences(4, 6, 9)
    deadline = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [(4, 6), (4, 9), (5, 6), (5, 9)]
    ahead.close()
