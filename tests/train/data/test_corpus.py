"""The corpus of files and built-in problems: what is held out, and with which tokenizer."""

import gzip
import json

import numpy as np
import pytest

from evals.problems import load_problems
from evals.tasks import document
from mhc_model.errors import CheckpointError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data import choose_tokenizer, prepare_corpus, read_documents

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
        ("x.txt.gz", gzip.compress(b"a text\n" * 99, mtime=0)[:-20], r"x.txt.gz cannot be read"),
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
