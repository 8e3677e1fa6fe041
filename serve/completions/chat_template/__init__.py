"""From a conversation to a prompt, by the template that came with the model.

In: messages as a caller sent them, and a template that others wrote. Out: token ids, or an error.
May import mhc_model and Jinja2.

    template.py     `ChatTemplate`: reads, tries and renders one
    environment.py  what templates run in, and a process to try them in
    stand_ins.py    what a caller wrote, kept from becoming control tokens
"""

from serve.completions.chat_template.template import (
    DEFAULT_STOP,
    DEFAULT_TEMPLATE,
    ChatOptions,
    ChatPrompt,
    ChatTemplate,
)

__all__ = ["DEFAULT_STOP", "DEFAULT_TEMPLATE", "ChatOptions", "ChatPrompt", "ChatTemplate"]
