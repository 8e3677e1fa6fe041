"""/tokenize and /detokenize, as vLLM's server has them: text and conversations as token ids."""

from __future__ import annotations

import asyncio
from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from serve.completions import Body, ChatFields, TokenIds
from serve.errors import error_responses, field_error
from serve.service import CompletionService

_ERRORS = (400, 401, 404, 413, 500)


class TokenizeRequest(ChatFields):
    """POST /tokenize: a text, or a conversation by the chat template."""

    prompt: str | None = Field(None, description="a text; or else messages")
    return_token_strs: bool = Field(False, description="give the tokens' texts too")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("prompt", "give a prompt, or messages of a conversation")
        return self


class TokenizeResponse(BaseModel):
    """Answer to POST /tokenize."""

    count: int
    max_model_len: int = Field(description="most tokens of a prompt and its completion")
    tokens: list[int]
    token_strs: list[str] | None = Field(None, description="with return_token_strs")


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    tokens: TokenIds = Field(description="token ids")


class DetokenizeResponse(BaseModel):
    """Answer to POST /detokenize."""

    prompt: str = Field(description="the text of the tokens; special ones have none")


def token_routes(service: CompletionService, router: APIRouter) -> APIRouter:
    """Adds the routes to a router."""

    @router.post("/tokenize", responses=error_responses(*_ERRORS))
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Token ids of a text, or of the prompt of a conversation."""
        service.check_model(body.model)
        tokens = await asyncio.to_thread(_tokens, service, body)
        names = service.identity.names.names
        return TokenizeResponse(
            count=len(tokens),
            max_model_len=service.context,
            tokens=tokens,
            token_strs=[names[token] for token in tokens] if body.return_token_strs else None,
        )

    @router.post("/detokenize", responses=error_responses(*_ERRORS))
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """The text of token ids."""
        service.check_model(body.model)
        text = await asyncio.to_thread(service.tokenizer.decode, body.tokens)
        return DetokenizeResponse(prompt=text)

    return router


def _tokens(service: CompletionService, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return service.preparer.text(body.prompt, body.add_special_tokens is not False)
    return service.preparer.conversation(body).tokens
