"""What a run is trained on, and what is held out."""

from __future__ import annotations

import os

from pydantic import Field, field_validator, model_validator

from mhc_model.settings import Settings


def absolute(path: str | None) -> str | None:
    """Workers have other working directories; a URI stays as it is."""
    if path is None or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


class DataConfig(Settings):
    """What the model is trained on, what is held out, and the vocabulary."""

    shards: str | None = Field(
        None,
        description="instead of files: a directory that `python -m train.prepare` wrote, made "
        "absolute, or its URI; it brings training tokens, held-out documents and tokenizer",
    )
    shards_cache: str | None = Field(
        None,
        description="directory on each machine's own disk for copies of shards that a URI names; "
        "none is one of the user's own in the directory for temporary files",
    )
    verify_shards: bool = Field(
        True,
        description="compare the sha256 of every shard at the start of a run; sizes always are",
    )
    files: tuple[str, ...] = Field(
        (),
        description="training files, plain or .gz: *.jsonl holds rows with text, or with question "
        "and answer; everything else is plain text",
    )
    validation_files: tuple[str, ...] = Field(
        (), description="held-out files of the same kinds; none holds out validation_share instead"
    )
    validation_share: float = Field(
        0.01,
        ge=0.0,
        le=0.5,
        description="share of the documents of `files` that is held out where there are no "
        "validation_files",
    )
    validation_documents: int = Field(
        200, ge=1, description="held-out documents that are evaluated, at most, per kind of source"
    )
    builtin_levels: tuple[int, ...] = Field(
        (), description="levels of the built-in problems to train on; their test split is held out"
    )
    builtin_count: int = Field(20_000, ge=1, description="built-in problems, all levels together")
    builtin_behaviours: tuple[str, ...] = Field(
        (),
        description="behaviours under which every built-in problem is learned, once each, answered "
        "in the behaviour's style; none learns it once, worked, under the learned gates",
    )
    style_words: bool = Field(
        False,
        description="write the behaviour of a row as words behind its question, 'How many? "
        "(direct)', instead of setting gates: for plain models, which have none",
    )
    tokenizer: str = Field(
        "train",
        description="'train' (byte-level BPE on the training documents; with shards, theirs), "
        "'gpt2' (downloaded), a .tiktoken file, or a directory with a saved tokenizer such as a "
        "checkpoint",
    )
    vocab_size: int = Field(
        512, ge=257, description="ids wanted of a trained tokenizer; little text may give fewer"
    )

    @field_validator("shards", "shards_cache")
    @classmethod
    def _makeabsolute(cls, path: str | None) -> str | None:
        return absolute(path)

    @model_validator(mode="after")
    def _check_sources(self) -> DataConfig:
        if self.shards is not None:
            names = ("files", "validation_files", "builtin_levels", "builtin_behaviours")
            others = [name for name in names if getattr(self, name)]
            if others:
                flags = " ".join(f"--data.{name.replace('_', '-')}" for name in others)
                raise ValueError(
                    f"shards are given beside {' and '.join(others)}: give one or the other; "
                    f"{flags} with nothing behind clears the others"
                )
            if self.style_words:
                raise ValueError(
                    "style_words is true, but shards hold tokens, and no questions to write into: "
                    "prepare them with --style-words"
                )
            return self
        if self.builtin_behaviours and not self.builtin_levels:
            raise ValueError(
                f"builtin_behaviours are {', '.join(self.builtin_behaviours)}, but there are no "
                f"built-in problems: give builtin_levels such as [1]"
            )
        if not self.files and not self.builtin_levels:
            raise ValueError("no data: give shards, files, or builtin_levels such as [1]")
        if self.files and not self.validation_files and self.validation_share == 0.0:
            raise ValueError(
                "nothing is held out of files: give validation_files or a validation_share above 0"
            )
        return self

    @field_validator("builtin_behaviours")
    @classmethod
    def _check_behaviours(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        return names
