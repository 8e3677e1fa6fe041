"""From a conversation to a prompt, by a Jinja2 template as Hugging Face checkpoints carry them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from mhc_model.errors import CheckpointError, ConfigError
from mhc_model.tokenizer import CONFIG_FILE, TEMPLATE_FILE, Tokenizer
from mhc_model.untrusted import MAX_TOKENIZER, read_file, read_object
from serve.completions.template_environment import (
    FAULTS,
    OVERRUNS,
    limited_time,
    make_environment,
    try_template,
)

# Fits base models trained on "Question: ...\nAnswer: ..." documents.
DEFAULT_TEMPLATE = """\
{%- for message in messages if message.role == 'system' %}{{ message.content | trim }}

{% endfor %}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'user' %}Question: {{ message.content | trim }}
{% else %}Answer: {{ message.content | trim }}

{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}Answer:{% endif %}"""
DEFAULT_STOP = "Question:"


class ChatTemplate:
    """Renders messages to token ids. Safe to share between threads."""

    def __init__(self, source: str, stop: Sequence[str] = ()) -> None:
        """Compiles a template.

        Args:
            source: of the template; gets `messages`, `add_generation_prompt`, `bos_token`,
                `eos_token`, and the functions `raise_exception` and `strftime_now`.
            stop: strings at which an answer ends, besides the request's.

        Raises:
            ConfigError: if it is no template, or fails on a conversation of one user message.
        """
        self.stop = tuple(stop)
        fault = None
        if source != DEFAULT_TEMPLATE:
            variables = {"add_generation_prompt": True, "bos_token": "", "eos_token": ""}
            fault = try_template(source, variables)
        if fault is not None:
            raise ConfigError(f"the chat template does not render a user message: {fault}")
        self._template = make_environment().from_string(source)

    @classmethod
    def load(cls, path: str | Path | None, checkpoint: str | Path) -> ChatTemplate:
        """The template of a file, else the checkpoint's, else the default.

        Args:
            path: of a template; None looks into the checkpoint.
            checkpoint: directory; `chat_template.jinja` there, or the entry `chat_template` of
                its tokenizer_config.json.

        Raises:
            ConfigError: if the file cannot be read or is no template.
        """
        if path is not None:
            return cls(_read(Path(path)))
        beside = Path(checkpoint) / TEMPLATE_FILE
        if beside.exists():
            return cls(_read(beside))
        config = Path(checkpoint) / CONFIG_FILE
        source = _read_config(config).get("chat_template") if config.exists() else None
        if source is None:
            return cls.default()
        if not isinstance(source, str):
            raise ConfigError(
                f"chat_template in {config} is no text but {type(source).__name__}; give the "
                f"template wanted as a file, with --chat-template"
            )
        return cls(source)

    @classmethod
    def default(cls) -> ChatTemplate:
        """System text, then `Question: ...` and `Answer: ...`; an answer ends at `Question:`."""
        return cls(DEFAULT_TEMPLATE, [DEFAULT_STOP])

    def encode(self, messages: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[int]:
        """Token ids of a prompt for the next answer.

        What the model's texts begin with begins it, whether the template writes it or not. Names of
        special tokens that the template writes are these tokens; in a message they are text like
        any other.

        Args:
            messages: each with `role` and `content`.
            tokenizer: of the model.

        Raises:
            jinja2.TemplateError: if the template refuses the messages.
            DataError: as `Tokenizer.encode`.
        """
        special = tokenizer.special_tokens
        # No message can hold a number drawn after it was written.
        stand_ins = {name: f"\ue000{secrets.token_hex(16)}\ue000" for name in special}
        names = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "$^")

        def hide(text: str) -> str:
            return names.sub(lambda found: stand_ins[found[0]], text)

        hidden = [{**message, "content": hide(message["content"])} for message in messages]
        of_ids = {token: name for name, token in special.items()}
        bos = "" if tokenizer.bos_id is None else of_ids.get(tokenizer.bos_id, "")
        rendered = self._render(hidden, bos, of_ids.get(tokenizer.eos_id, ""))
        ids: list[int] = []
        if tokenizer.bos_id is not None and not rendered.startswith(bos or "\0"):
            ids.append(tokenizer.bos_id)
        position = 0
        for found in (*names.finditer(rendered), None):
            text = rendered[position : found.start() if found else None]
            for name, stand_in in stand_ins.items():
                text = text.replace(stand_in, name)
            ids += tokenizer.encode(text)
            if found:
                ids.append(special[found[0]])
                position = found.end()
        return ids

    def _render(self, messages: Sequence[dict[str, Any]], bos: str, eos: str) -> str:
        with limited_time():
            try:
                return self._template.render(
                    messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
                )
            except TemplateError:
                raise
            except (*FAULTS, *OVERRUNS) as error:
                raise TemplateError(f"the chat template fails: {error}") from None


def _read(path: Path) -> str:
    try:
        return read_file(path, MAX_TOKENIZER).decode("utf-8")
    except (CheckpointError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, MAX_TOKENIZER)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
