"""From a conversation to a prompt, by a Jinja2 template as Hugging Face checkpoints carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from mhc_model.errors import CheckpointError, ConfigError
from mhc_model.files import MAX_TOKENIZER, read_file, read_object
from mhc_model.tokenizer import CONFIG_FILE, TEMPLATE_FILE, Tokenizer
from serve.completions.chat_template.environment import (
    FAULTS,
    OVERRUNS,
    limited_time,
    make_environment,
    try_template,
)
from serve.completions.chat_template.stand_ins import StandIns

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


class ChatOptions(NamedTuple):
    """What a template gets beside the messages; the names and defaults are transformers'.

    Attributes:
        add_generation_prompt: end with what comes before an answer.
        continue_final_message: end within the last message, for the answer to go on with it.
        add_special_tokens: put what the model's texts begin with before a prompt that the template
            begins with something else; None does so too.
        tools: that the template may describe.
        documents: that it may quote.
        variables: further names, from `chat_template_kwargs`.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = {}


class ChatPrompt(NamedTuple):
    """A conversation as a prompt.

    Attributes:
        tokens: its ids.
        opens_text: it ends in the middle of a line of text, such as `Answer:`: the space with
            which an answer goes on belongs to the template, not to the answer.
    """

    tokens: list[int]
    opens_text: bool


class ChatTemplate:
    """Renders messages to token ids. Safe to share between threads."""

    def __init__(self, source: str, stop: Sequence[str] = ()) -> None:
        """Compiles a template.

        Args:
            source: of the template; gets `messages`, `add_generation_prompt`, `tools`,
                `documents`, `bos_token`, `eos_token`, and the functions `raise_exception` and
                `strftime_now`.
            stop: strings at which an answer ends, besides the request's.

        Raises:
            ConfigError: if it is no template, or fails on a conversation of one user message.
        """
        self.stop = tuple(stop)
        fault = None
        if source != DEFAULT_TEMPLATE:
            fault = try_template(source, _variables(ChatOptions(), {}, "", ""))
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
        if isinstance(source, list):  # several templates, each with a name
            named = {
                each.get("name"): each.get("template") for each in source if isinstance(each, dict)
            }
            source = named.get("default", source)
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
        """Token ids of a prompt for the next answer; see `prompt`."""
        return self.prompt(messages, tokenizer).tokens

    def prompt(
        self,
        messages: Sequence[dict[str, Any]],
        tokenizer: Tokenizer,
        options: ChatOptions | None = None,
    ) -> ChatPrompt:
        """The prompt for the next answer, or for the rest of the last message.

        What the model's texts begin with begins it, whether the template writes it or not. Names of
        special tokens that the template writes are these tokens; in whatever the caller wrote they
        are text like any other, and so are parts of them that the template puts together.

        Args:
            messages: each with `role`, which is trusted, and `content`.
            tokenizer: of the model.
            options: see `ChatOptions`; None: the defaults.

        Raises:
            jinja2.TemplateError: if the template refuses the messages.
            DataError: as `Tokenizer.encode`.
        """
        options = ChatOptions() if options is None else options
        special = tokenizer.special_tokens
        stand_ins = StandIns(special)
        hidden = [
            {key: value if key == "role" else stand_ins.hide(value) for key, value in each.items()}
            for each in messages
        ]
        end = stand_ins.add("")
        if options.continue_final_message:
            hidden[-1]["content"] += end + " "
        of_ids = {token: name for name, token in special.items()}
        bos = "" if tokenizer.bos_id is None else of_ids.get(tokenizer.bos_id, "")
        eos = of_ids.get(tokenizer.eos_id, "")
        given = {
            "tools": stand_ins.hide(options.tools),
            "documents": stand_ins.hide(options.documents),
            **stand_ins.hide(dict(options.variables)),
        }
        rendered = self._render(hidden, options, given, bos, eos)
        if options.continue_final_message:
            rendered = _up_to(rendered, end)
        ids: list[int] = []
        begins = tokenizer.bos_id is not None and options.add_special_tokens is not False
        if begins and not rendered.startswith(bos or "\0"):
            ids.append(tokenizer.bos_id)  # type: ignore[arg-type]  # `begins` says it is there
        text = rendered
        for text, name in stand_ins.split(rendered):
            ids += tokenizer.encode(text)
            if name is not None:
                ids.append(special[name])
        opens = options.add_generation_prompt and not options.continue_final_message
        return ChatPrompt(ids, opens and text != "" and not text[-1].isspace())

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        options: ChatOptions,
        given: Mapping[str, Any],
        bos: str,
        eos: str,
    ) -> str:
        variables = _variables(options, given, bos, eos)
        with limited_time():
            try:
                return self._template.render(variables, messages=messages)
            except TemplateError:
                raise
            except (*FAULTS, *OVERRUNS) as error:
                said = f"{type(error).__name__}: {error}"
                raise TemplateError(f"the chat template fails: {said}") from None


def _variables(
    options: ChatOptions, given: Mapping[str, Any], bos: str, eos: str
) -> dict[str, Any]:
    """What a template gets beside the messages."""
    return {
        "tools": None,
        "documents": None,
        **given,
        "add_generation_prompt": options.add_generation_prompt,
        "bos_token": bos,
        "eos_token": eos,
    }


def _up_to(rendered: str, end: str) -> str:
    """What the template writes up to the end of the last message, as transformers cuts it."""
    place = rendered.rfind(end)
    if place < 0:
        raise TemplateError(
            "continue_final_message is true, and the template does not write the last message's "
            "content"
        )
    kept = rendered[:place]
    return kept if rendered.startswith(end + " ", place) else kept.rstrip()


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
