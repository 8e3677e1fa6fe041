"""Documents to the sequences of a step.

In: a `DataConfig`: files, built-in problems, or shards that train.prepare wrote. Out: a `Corpus`,
and the `Batches` of all steps, a pure function of (seed, step). May import train.config, mhc_model
and the problems and tasks of evals.

    documents.py  files -> documents, and which of them are held out
    shards.py     `ShardedTokens`: a prepared corpus on a disk or in a bucket
    batches.py    `Batches`: which tokens belong to which step; `ReadAhead`
    corpus.py     `Corpus`: everything that training reads, and its tokenizer
    answers.py    questions with answers, of which only the answers are learned
"""

from train.data.answers import (
    IGNORED,
    AnswerBatches,
    AnswerCorpus,
    Examples,
    left_out,
    pack,
    prepare_answers,
    tokenize,
)
from train.data.batches import Batches, ReadAhead, Tokens
from train.data.corpus import Corpus, choose_tokenizer, prepare_corpus
from train.data.documents import file_kind, is_held_out, read_documents, row_text
from train.data.shards import (
    BEGUN,
    BYTE_TABLE,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardedTokens,
    ShardEntry,
    byte_table,
    open_directory,
    tokenizer_sha256,
)

__all__ = [
    "BEGUN",
    "BYTE_TABLE",
    "FORMAT",
    "IGNORED",
    "MANIFEST",
    "TOKENIZER",
    "AnswerBatches",
    "AnswerCorpus",
    "Batches",
    "Corpus",
    "Examples",
    "Manifest",
    "ReadAhead",
    "ShardEntry",
    "ShardedTokens",
    "Tokens",
    "byte_table",
    "choose_tokenizer",
    "file_kind",
    "is_held_out",
    "left_out",
    "open_directory",
    "pack",
    "prepare_answers",
    "prepare_corpus",
    "read_documents",
    "row_text",
    "tokenize",
    "tokenizer_sha256",
]
