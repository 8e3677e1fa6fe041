"""Limits of a session."""

from __future__ import annotations

from pydantic import Field

from mhc_model.recursion.prompts import Prompts
from mhc_model.settings import Settings


class SessionSettings(Settings):
    """What one session may spend and how it reads."""

    budget_tokens: int = Field(
        8192, ge=1, description="prompt and generated tokens of the whole session together"
    )
    max_depth: int = Field(
        4, ge=0, le=16, description="levels of recursion below what the caller or program calls"
    )
    k: int = Field(6, ge=1, le=100, description="passages that `ask` searches for and reads first")
    max_tokens: int = Field(48, ge=1, description="tokens of one answer")
    chunk_tokens: int = Field(
        1024, ge=16, description="tokens of one chunk; fewer where the context holds fewer"
    )
    max_steps: int = Field(256, ge=1, description="verbs that a session may call, all levels")
    max_peek: int = Field(20_000, ge=1, description="characters that one peek may return")
    max_sources: int = Field(4096, ge=1, description="chunks that one map may read, all levels")
    prompts: Prompts = Field(Prompts.model_validate({}), description="what the model is asked")
