"""Small programs of a session's verbs, and the only thing that runs them.

A program is lines of `name = expression` and expressions; the last line's value is the answer:

    hits = search("harbour master brass key", 8)
    partial = map("Where is the key?", [h for h in hits if h["score"] > 2])
    reduce("Where is the key?", partial)

It looks like Python and is parsed as such, but nothing of it is ever executed by Python: this
module walks the tree and knows the verbs, a few functions, names, literals, subscripts,
comparisons, `and`/`or`/`not`, `a if b else c`, `+` and `-`, and list comprehensions. There are no
attributes, no imports, no definitions, no loops without end, no multiplication. Every node costs
work, every value the work of its size, and a program has a fixed amount of it.
"""

from __future__ import annotations

import ast
import inspect
import json
import operator
from collections.abc import Callable, Iterator
from typing import Any

from mhc_model.errors import BudgetError, CancelledError, ProgramError
from mhc_model.recursion import functions
from mhc_model.recursion.search import Passage
from mhc_model.recursion.session import Session
from mhc_model.recursion.settings import answered
from mhc_model.recursion.transcript import Answer, FinishReason

MAX_PROGRAM = 8192  # characters
MAX_NODES = 2000
MAX_NESTING = 40
MAX_WORK = 500_000  # one a node evaluated, one an item of a list made, one per 64 characters made
MAX_ITEMS = 5000  # of one list
MAX_NUMBER = 1 << 53
_CHARACTERS_PER_WORK = 64

VERBS = ("peek", "search", "chunks", "query", "map", "reduce", "ask")
_FIELDS = ("text", "start", "end", "score")  # of a passage

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def run_program(session: Session, source: str) -> Answer:
    """Runs a program; its last value, as text or JSON, is the answer.

    Running out of budget, or being cancelled, is an answer with that finish_reason.

    Raises:
        ProgramError: naming the line and what is not allowed there.
        SessionError, MHCError: of a verb.
    """
    program = parse_program(source)
    try:
        value = Interpreter(session).run(program)
    except (BudgetError, CancelledError) as error:
        reason: FinishReason = "budget" if isinstance(error, BudgetError) else "cancelled"
        return Answer(None, reason, detail=str(error))
    text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    return Answer(text, "answered" if answered(text) else "not_found")


def parse_program(source: str) -> ast.Module:
    """Parses a program and checks its size; nothing is run.

    Raises:
        ProgramError: if it is too large or too deeply nested, or is not a program.
    """
    if len(source) > MAX_PROGRAM:
        raise ProgramError(f"the program has {len(source)} characters; at most {MAX_PROGRAM}")
    try:
        program = ast.parse(source)
    except SyntaxError as error:
        raise ProgramError(f"line {error.lineno or 1} is no program: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting, huge numbers
        raise ProgramError(f"this is no program: {error or type(error).__name__}") from None
    if not program.body:
        raise ProgramError('the program is empty; its last line is the answer, as in ask("...")')
    level: list[ast.AST] = [program]
    nodes = depth = 0
    while level:  # breadth first: a walk by recursion could itself be too deep
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES or depth > MAX_NESTING:
            raise ProgramError(
                f"the program has more than {MAX_NODES} parts or {MAX_NESTING} levels of nesting"
            )
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return program


class Interpreter:
    """Evaluates a parsed program against one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names: dict[str, Any] = {}
        self._work = 0
        self._functions: dict[str, Callable[..., Any]] = {
            **{verb: getattr(session, verb) for verb in VERBS},
            "ask": self._ask,
            "answered": functions.tells,
            "len": functions.length,
            "min": functions.least,
            "max": functions.greatest,
            "sorted": functions.sort,
            "join": functions.join,
            "str": functions.as_text,
        }

    def run(self, program: ast.Module) -> Any:
        """The value of the last line.

        Raises:
            ProgramError: at the first thing that is not allowed.
        """
        value = None
        for line in program.body:
            match line:
                case ast.Expr(value=expression):
                    value = self._value(expression)
                case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                    self._check_name(line, name)
                    value = self._names[name] = self._value(expression)
                case _:
                    raise _refusal(
                        line,
                        f"{type(line).__name__} is not allowed; a line is an "
                        f"expression or `name = expression`",
                    )
        return value

    def _value(self, node: ast.expr) -> Any:
        self._session.cancel.check()
        self._charge(node, 1)
        evaluate = getattr(self, f"_{type(node).__name__}", None)
        if evaluate is None:
            raise _refusal(node, f"{type(node).__name__} is not allowed in a program")
        return evaluate(node)

    def _charge(self, node: ast.AST, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise _refusal(node, f"the program takes more than {MAX_WORK} units of work")

    def _sized(self, node: ast.AST, value: Any) -> Any:
        """The value, once its size is within the limits and paid for.

        A list pays for what is in it, all levels: lists of lists of lists cannot grow unnoticed.
        """
        pending = [value]
        while pending:
            match pending.pop():
                case str() as text:
                    size, most = len(text), functions.MAX_STRING
                    if size > most:
                        raise _refusal(node, f"a text has {size} characters; at most {most}")
                    self._charge(node, len(text) // _CHARACTERS_PER_WORK)
                case list() as items:
                    if len(items) > MAX_ITEMS:
                        raise _refusal(node, f"a list has {len(items)} items; at most {MAX_ITEMS}")
                    self._charge(node, len(items))
                    pending.extend(items)
                case Passage() as passage:
                    self._charge(node, 1 + len(passage.text) // _CHARACTERS_PER_WORK)
                case int() | float() as number if abs(number) > MAX_NUMBER:
                    raise _refusal(node, f"a number is beyond {MAX_NUMBER}")
        return value

    def _check_name(self, node: ast.AST, name: str) -> None:
        if name in self._functions:
            raise _refusal(node, f"{name!r} is a verb or function; give the value another name")

    # One method a kind of node, named after it: what has no method is not allowed.

    def _Constant(self, node: ast.Constant) -> Any:
        if node.value is not None and not isinstance(node.value, str | int | float | bool):
            raise _refusal(node, f"a {type(node.value).__name__} is not allowed")
        return self._sized(node, node.value)

    def _Name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            known = sorted(self._names) or "none yet"
            raise _refusal(node, f"the name {node.id!r} is unknown; known: {known}")
        return self._names[node.id]

    def _List(self, node: ast.List) -> list[Any]:
        return self._sized(node, [self._value(item) for item in node.elts])

    def _Tuple(self, node: ast.Tuple) -> list[Any]:
        return self._sized(node, [self._value(item) for item in node.elts])

    def _Subscript(self, node: ast.Subscript) -> Any:
        value = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            if not isinstance(value, str | list):
                raise _refusal(node, "only texts and lists have slices")
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds = [None if part is None else self._value(part) for part in parts]
            if any(bound is not None and type(bound) is not int for bound in bounds):
                raise _refusal(node, "a slice is of whole numbers")
            if bounds[2] == 0:
                raise _refusal(node, "the step of a slice is 0")
            return self._sized(node, value[slice(*bounds)])
        key = self._value(node.slice)
        if isinstance(value, Passage):
            if key not in _FIELDS:
                raise _refusal(node, f"a passage has {', '.join(_FIELDS)}, not {key!r:.80}")
            return self._sized(node, getattr(value, key))
        if not isinstance(value, str | list) or type(key) is not int:
            raise _refusal(node, "only a text, a list or a passage has parts, counted from 0")
        if not -len(value) <= key < len(value):
            raise _refusal(node, f"there is no part {key}; there are {len(value)}")
        return value[key]

    def _Compare(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for sign, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node)
            if not self._holds(node, sign, left, right):
                return False
            left = right
        return True

    def _holds(self, node: ast.Compare, sign: ast.cmpop, left: Any, right: Any) -> bool:
        if isinstance(sign, ast.In | ast.NotIn):
            both_texts = isinstance(left, str) and isinstance(right, str)
            if not both_texts and not (isinstance(right, list) and functions.is_scalar(left)):
                raise _refusal(node, "`in` looks for a text in a text, or a value in a list")
            self._charge(node, len(right) // (_CHARACTERS_PER_WORK if both_texts else 1))
            return (left in right) == isinstance(sign, ast.In)
        if type(sign) not in _COMPARISONS:
            raise _refusal(node, f"{type(sign).__name__} is not allowed")
        if not (functions.is_scalar(left) and functions.is_scalar(right)):
            raise _refusal(node, "only texts, numbers, True, False and None can be compared")
        if isinstance(sign, _ORDERED) and not functions.same_kind([left, right]):
            raise _refusal(node, "numbers compare with numbers, texts with texts")
        for side in (left, right):
            self._charge(node, len(side) // _CHARACTERS_PER_WORK if isinstance(side, str) else 0)
        return _COMPARISONS[type(sign)](left, right)

    def _BoolOp(self, node: ast.BoolOp) -> Any:
        value = None
        for part in node.values:
            value = self._value(part)
            if bool(value) == isinstance(node.op, ast.Or):
                break
        return value

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self._value(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(node.op, ast.USub) and type(value) in (int, float):
            return -value
        raise _refusal(node, f"{type(node.op).__name__} is not allowed here")

    def _BinOp(self, node: ast.BinOp) -> Any:
        if not isinstance(node.op, ast.Add | ast.Sub):
            raise _refusal(node, f"{type(node.op).__name__} is not allowed; there are + and -")
        left, right = self._value(node.left), self._value(node.right)
        adds = isinstance(node.op, ast.Add)
        if all(type(side) in (int, float) for side in (left, right)):
            return self._sized(node, left + right if adds else left - right)
        if adds and isinstance(left, str) and isinstance(right, str):
            return self._sized(node, left + right)
        if adds and isinstance(left, list) and isinstance(right, list):
            return self._sized(node, left + right)
        raise _refusal(node, "+ joins two numbers, texts or lists, - takes two numbers")

    def _IfExp(self, node: ast.IfExp) -> Any:
        return self._value(node.body if self._value(node.test) else node.orelse)

    def _ListComp(self, node: ast.ListComp) -> list[Any]:
        outer = dict(self._names)
        made: list[Any] = []
        try:
            for _ in self._rounds(node.generators):
                made.append(self._value(node.elt))
                if len(made) > MAX_ITEMS:
                    raise _refusal(node, f"a list has more than {MAX_ITEMS} items")
        finally:
            self._names = outer
        return self._sized(node, made)

    def _rounds(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Binds the names of a comprehension, one combination a round."""
        if not generators:
            yield
            return
        first, rest = generators[0], generators[1:]
        if not isinstance(first.target, ast.Name) or first.is_async:
            raise _refusal(first.target, "a comprehension is `for name in list`")
        self._check_name(first.target, first.target.id)
        items = self._value(first.iter)
        if not isinstance(items, list):
            raise _refusal(first.iter, "a comprehension goes through a list")
        for item in items:
            self._charge(first.target, 1)
            self._names[first.target.id] = item
            if all(self._value(condition) for condition in first.ifs):
                yield from self._rounds(rest)

    def _Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in self._functions:
            raise _refusal(node, f"only these can be called: {', '.join(sorted(self._functions))}")
        name, function = node.func.id, self._functions[node.func.id]
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise _refusal(node, "* is not allowed in a call")
        arguments = [self._value(argument) for argument in node.args]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise _refusal(node, "** is not allowed in a call")
            named[keyword.arg] = self._value(keyword.value)
        try:
            inspect.signature(function).bind(*arguments, **named)
        except TypeError as error:
            raise _refusal(node, f"{name}: {error}") from None
        for value in (*arguments, *named.values()):
            self._sized(node, value)  # the function reads it
        try:
            return self._sized(node, function(*arguments, **named))
        except functions.FunctionError as error:
            raise _refusal(node, str(error)) from None

    def _ask(self, question: str, start: int = 0, end: int | None = None) -> str:
        """A question within a program: its answer's text, and the errors as errors."""
        answer = self._session.ask(question, start, end)
        if answer.finish_reason == "budget":
            raise BudgetError(answer.detail or "the budget is spent")
        if answer.finish_reason == "cancelled":
            raise CancelledError(answer.detail or "the session was cancelled")
        return answer.text if answer.text is not None else "not found"


def _refusal(node: ast.AST, message: str) -> ProgramError:
    return ProgramError(f"line {getattr(node, 'lineno', 1)}: {message}")


def _plain(value: Any) -> Any:
    """JSON of a program's value, whose size `_sized` has bounded."""
    if isinstance(value, Passage):
        return value.as_json()
    return [_plain(item) for item in value] if isinstance(value, list) else value
