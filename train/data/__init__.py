"""Documents to the sequences of a step.

In: a `DataConfig`: files, built-in problems, or shards that train.prepare wrote. Out: a `Corpus`,
and the `Batches` of all steps, a pure function of (seed, step). May import train.config, mhc_model
and the problems and tasks of evals.

    groups.py     what rows say of their gates: a behaviour, or numbers
    documents.py  files -> documents, and which of them are held out
    builtin.py    the built-in problems, each in the style of its behaviour
    manifest.py   what a directory of shards says of itself
    shards.py     `ShardedTokens`: a prepared corpus on a disk or in a bucket
    shard_cache.py  copies of a bucket's shards: private, and hashed
    batches.py    `Batches`: which tokens belong to which step; `ReadAhead`
    corpus.py     `Corpus`: everything that training reads, and its tokenizer
    questions.py  files, the hub, built-in problems -> questions with answers
    answers.py    the same tokenized: only the answers are learned
"""

from train.data.answers import (
    IGNORED,
    AnswerBatches,
    AnswerCorpus,
    Examples,
    left_out,
    pack,
    pack_groups,
    prepare_answers,
    tokenize,
)
from train.data.batches import Batches, GroupedTokens, ReadAhead, Tokens
from train.data.corpus import Corpus, choose_tokenizer, prepare_corpus
from train.data.documents import (
    Document,
    file_kind,
    is_held_out,
    line_at,
    read_documents,
    row_document,
)
from train.data.groups import (
    KEYS,
    NO_GROUP,
    Group,
    RowGroup,
    Words,
    check_groups,
    describe_group,
)
from train.data.manifest import (
    BEGUN,
    BYTE_TABLE,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardEntry,
    byte_table,
    open_directory,
    tokenizer_sha256,
)
from train.data.shards import ShardedTokens

__all__ = [
    "BEGUN",
    "BYTE_TABLE",
    "FORMAT",
    "IGNORED",
    "KEYS",
    "MANIFEST",
    "NO_GROUP",
    "TOKENIZER",
    "AnswerBatches",
    "AnswerCorpus",
    "Batches",
    "Corpus",
    "Document",
    "Examples",
    "Group",
    "GroupedTokens",
    "Manifest",
    "ReadAhead",
    "RowGroup",
    "ShardEntry",
    "ShardedTokens",
    "Tokens",
    "Words",
    "byte_table",
    "check_groups",
    "choose_tokenizer",
    "describe_group",
    "file_kind",
    "is_held_out",
    "left_out",
    "line_at",
    "open_directory",
    "pack",
    "pack_groups",
    "prepare_answers",
    "prepare_corpus",
    "read_documents",
    "row_document",
    "tokenize",
    "tokenizer_sha256",
]
