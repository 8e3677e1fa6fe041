"""What chat templates run in: Jinja2's sandbox, with limits of its own.

A template comes with a checkpoint, so with a file that others wrote: `'a' * 10**10` takes all the
memory there is, and three loops in one another never end. Before it is used at all, a template is
tried in a process that may take little (`try_template`). Here it can do what it did there; what
depends on a conversation is bounded where that is cheap.

This file runs by itself in that process, so it imports Jinja2 and the standard library only.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE = 2**20  # characters of a template; the longest known have about 20,000
MAX_SIZE = 10**7  # characters or entries that one operation makes
MAX_BITS = 4096  # of a whole number
RENDER_S = 5.0  # of the processor, for one conversation
# Of the process in which a template is tried: seconds of the processor, memory, the wait for it.
TRY_CPU_S, TRY_BYTES, TRY_S = 0.5, 192 * 2**20, 30.0
# What a template fails with, beside its own errors.
FAULTS = (TemplateError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError)
OVERRUNS = (RecursionError, MemoryError)

# A template that renders the first is one; the others only must not run away.
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c " * 100},
    ],
)

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with bounded numbers, sizes and time."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "//", "/", "-"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation of a template, once its result is known to be small enough.

        Raises:
            SecurityError: if it is not.
        """
        check_time()
        if operator == "*":
            for thing, count in ((left, right), (right, left)):
                if isinstance(count, int) and hasattr(thing, "__len__"):
                    _check_size(len(thing) * max(0, count))
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_widths(left, right)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits, times = left.bit_length(), right.bit_length()
            most = bits * abs(right) if operator == "**" and times < 32 else bits + times
            if most > MAX_BITS or (operator == "**" and times >= 32):
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call in a template; raises SecurityError past the deadline."""
        check_time()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str | bytes):
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    _check_size(value)
            if getattr(__obj, "__name__", "") == "replace" and len(args) > 1:
                _check_size(text.count(args[0]) * len(args[1]))
        return super().call(__context, __obj, *args, **kwargs)


class Generation(Extension):
    """`{% generation %}` and `{% endgeneration %}` mark what a model learns; here they do nothing.

    Templates for training have them (`return_assistant_tokens_mask` of transformers).
    """

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(inside).set_lineno(line)


def make_environment() -> LimitedEnvironment:
    """As transformers makes it, so that its templates render here as there."""
    environment = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        optimized=False,  # what is constant would be computed when the template is read
    )
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum")
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


@contextmanager
def limited_time(seconds: float = RENDER_S) -> Iterator[None]:
    """Bounds what templates do inside."""
    token = _deadline.set(time.thread_time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raises SecurityError past the deadline."""
    deadline = _deadline.get()
    if deadline is not None and time.thread_time() > deadline:
        raise SecurityError(f"the chat template took more than {RENDER_S:g} s")


def try_template(source: str, variables: Mapping[str, Any]) -> str | None:
    """What is wrong with a template, found out in a process of its own; None for nothing.

    Args:
        source: of the template.
        variables: JSON values that it gets beside `messages`.
    """
    if len(source) > MAX_SOURCE:
        return f"it has {len(source)} characters; at most {MAX_SOURCE}"
    given = json.dumps({"source": source, "variables": dict(variables)})
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=TRY_S)
        said = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return f"a short conversation takes more than {TRY_CPU_S} s or {TRY_BYTES} bytes"
    fault: str | None = said["fault"]
    return fault


def render_all(source: str, variables: Mapping[str, Any]) -> str | None:
    """What is wrong with a template, found out here."""
    try:
        template = make_environment().from_string(source)
        sizes = [len(template.render(messages=CONVERSATIONS[0], **variables))]
    except (*FAULTS, *OVERRUNS, SyntaxError) as error:
        return f"{error}" or type(error).__name__
    for messages in CONVERSATIONS[1:]:
        try:
            sizes.append(len(template.render(messages=messages, **variables)))
        except (*OVERRUNS, SecurityError) as error:
            return f"{error}" or type(error).__name__
        except FAULTS:
            continue  # it may refuse such a conversation
    if max(sizes) > MAX_SOURCE:
        return f"a short conversation becomes {max(sizes)} characters; at most {MAX_SOURCE}"
    return None


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"an operation would make {size} characters; at most {MAX_SIZE}")


def _check_widths(format_: str, values: Any) -> None:
    """Refuses `%1000000000d` and `%*d` of a large number."""
    digits = "".join(c if c.isdigit() else " " for c in format_).split()
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    widths = [int(part[:9]) for part in digits]
    widths += [n for n in numbers if isinstance(n, int)] if "*" in format_ else []
    _check_size(sum(widths))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja2's own escapes for HTML."""
    if isinstance(options.get("indent"), int):
        _check_size(1000 * options["indent"])
    return json.dumps(value, ensure_ascii=False, **options)


def _main() -> None:
    """Reads a template, with the memory and time that it may take."""
    given = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (TRY_BYTES, TRY_BYTES))
    signal.setitimer(signal.ITIMER_VIRTUAL, TRY_CPU_S)  # its signal ends the process
    print(json.dumps({"fault": render_all(given["source"], given["variables"])}))


if __name__ == "__main__":
    _main()
