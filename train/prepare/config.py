"""Configuration of `python -m train.prepare`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from mhc_model.settings import RaySettings, Settings

FINEWEB_EDU = "HuggingFaceFW/fineweb-edu"
FINEWEB_EDU_SUBSET = "sample-10BT"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = (".gz", ".jsonl", ".json", ".parquet", ".txt", ".md", ".csv", ".tsv")


class PrepareConfig(Settings):
    """What is read, how it is cut and tokenized, and where the shards go."""

    source: tuple[str, ...] = Field(
        (FINEWEB_EDU,),
        min_length=1,
        description="a data set on the hub, such as HuggingFaceFW/fineweb-edu; or a local "
        "directory that `datasets` can load; or files: *.jsonl and *.jsonl.gz hold rows with text, "
        "or with question and answer, *.parquet the same as columns, everything else is text, "
        "plain or .gz",
    )
    subset: str | None = Field(
        None,
        description="configuration of a data set; none is its default, and sample-10BT of "
        "FineWeb-Edu",
    )
    split: str = Field("train", description="split of a data set")
    revision: str | None = Field(
        None, description="commit, tag or branch of a data set on the hub; none is the newest"
    )
    text_column: str = Field("text", description="column or key of a row's text")
    style_words: bool = Field(
        False,
        description="write the behaviour of a row as words behind its question, instead of making "
        "shards of its own for it: for plain models, which have no gates",
    )
    out: str = Field(
        description="directory of the shards, or a URI such as s3://bucket/shards that all "
        "machines can write"
    )
    tokenizer: str = Field(
        "gpt2",
        description="'train' (byte-level BPE on the training documents), 'gpt2' (downloaded), a "
        ".tiktoken file, or a directory with a saved tokenizer such as a checkpoint",
    )
    vocab_size: int = Field(
        32_768, ge=257, description="ids wanted of a trained tokenizer; little text may give fewer"
    )
    tokenizer_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="text that a tokenizer is trained on, drawn evenly from all parts of the "
        "source",
    )
    validation_share: float = Field(
        0.005, gt=0.0, le=0.5, description="share of the documents that is held out"
    )
    seed: int = Field(0, ge=0, description="of the choice of held-out documents")
    part_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="text, about, of one part: a part is one task, one training shard, and what is "
        "done again after an interruption; a .gz file is never divided",
    )
    max_parts: int | None = Field(
        None, ge=1, description="only so many parts, from the beginning of the source; none is all"
    )
    tasks: int | None = Field(
        None, ge=1, description="parts at work at once, a CPU each; none is as many as CPUs"
    )
    ray: RaySettings = Field(RaySettings(), description="where Ray runs")

    @field_validator("out")
    @classmethod
    def _make_out_absolute(cls, path: str) -> str:
        return path.rstrip("/") if "://" in path else _absolute(path)

    @field_validator("tokenizer")
    @classmethod
    def _make_tokenizer_absolute(cls, choice: str) -> str:
        if choice == "train" or not Path(choice).expanduser().exists():
            return choice
        return _absolute(choice)

    @field_validator("source")
    @classmethod
    def _make_sources_absolute(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        # Tasks have other working directories. What is not there may be a name on the hub.
        return tuple(_absolute(s) if Path(s).expanduser().exists() else s for s in sources)

    @model_validator(mode="after")
    def _check_source(self) -> PrepareConfig:
        for source in self.source:
            if not Path(source).exists() and not _is_hub_name(source):
                raise ValueError(
                    f"source {source!r} is no file or directory here, and no name of a data set "
                    f"such as {FINEWEB_EDU}"
                )
        if len(set(self.source)) < len(self.source):
            raise ValueError(f"source names {self._repeated()!r} twice")
        if self.is_data_set and len(self.source) > 1:
            raise ValueError(
                f"source has {len(self.source)} entries, one of them a data set or a directory: "
                f"give one data set, or files"
            )
        for name in ("subset", "revision"):
            if getattr(self, name) is not None and not self.is_data_set:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but the source is files")
        return self

    def _repeated(self) -> str:
        return next(s for s in self.source if self.source.count(s) > 1)

    @property
    def is_data_set(self) -> bool:
        """Whether the source is read through `datasets`."""
        return any(not Path(source).is_file() for source in self.source)

    @property
    def data_set_subset(self) -> str | None:
        """The configuration of the data set."""
        if self.subset is None and self.source == (FINEWEB_EDU,):
            return FINEWEB_EDU_SUBSET
        return self.subset

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the content of the shards, as JSON values."""
        values = self.model_dump(mode="json", exclude={"out", "tasks", "ray"})
        if not self.style_words:  # as in the directories of before it was a field
            del values["style_words"]
        return values


def _is_hub_name(source: str) -> bool:
    """Whether what is not there may be a data set, and not a file whose name was mistyped."""
    path = Path(source)
    is_file = path.suffix in FILE_SUFFIXES or (path.suffix != "" and path.parent.is_dir())
    return HUB_NAME.fullmatch(source) is not None and not is_file


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
