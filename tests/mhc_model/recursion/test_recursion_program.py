"""Programs of verbs: what they can do, and that they can do nothing else and nothing for long."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model.errors import MHCError, ProgramError, SessionError
from mhc_model.recursion import Generated, Session, SessionSettings, TextIndex, run_program
from mhc_model.recursion.program import MAX_PROGRAM, Interpreter, parse_program

TEXT = "The key is brass. " * 10 + "The lamp is green. " * 10 + "The bell is cracked. " * 10


class Echo:
    """Answers with the first sentence of the source."""

    context = 200
    embedder = None

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, max_tokens, stop, gates, cancel):
        return [
            Generated(prompt.lstrip().split(".")[0], self.count_tokens(prompt), 4)
            for prompt in prompts
        ]


INDEX = TextIndex(TEXT, 90, 20)


def session(**fields) -> Session:
    values = {"budget_tokens": 5000, "max_tokens": 10, **fields}
    return Session(INDEX, Echo(), SessionSettings.model_validate(values))


def value_of(program: str, **fields):
    return Interpreter(session(**fields)).run(parse_program(program))


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("1 + 2 - 5", -2),
        ("'a' + 'b'", "ab"),
        ("[1] + [2]", [1, 2]),
        ("len(peek(0, 17))", 17),
        ("peek(0, 1, 'lines')[4:7]", "key"),
        ("search('green lamp', 1)[0]['text'][0:3] != ''", True),
        ("[h['start'] < h['end'] for h in search('lamp', 3)]", [True] * 3),
        ("[a + b for a in [1, 2] for b in [10, 20] if a + b != 12]", [11, 21, 22]),
        ("x = 3\ny = [x for x in [1, 2]]\nx", 3),
        ("max([3, 1, 2]) - min(4, 5)", -1),
        ("sorted(['b', 'a'])[0]", "a"),
        ("sorted([2, 3, 1], reverse=True)", [3, 2, 1]),
        ("sorted([])", []),
        ("join('-', [str(1), 'x'])", "1-x"),
        ("1 < 2 <= 2 != 3", True),
        ("'ey' in 'key' and 4 not in [1, 2]", True),
        ("'' or 'fallback'", "fallback"),
        ("'yes' if answered('not found') else 'no'", "no"),
        ("not -1", False),
        ("len(chunks())", 2),
        ("query('what?', search('lamp', 1)[0]) != ''", True),
        ("len(map('what?', search('bell', 3)))", 3),
        ("reduce('what?', ['not found', 'only'])", "only"),
        ("ask('Is the bell cracked?') != ''", True),
        ("None", None),
    ],
)
def test_what_a_program_can_do(program, value):
    assert value_of(program) == value


def test_a_program_is_in_the_transcript_and_its_last_line_is_the_answer():
    opened = session()
    answer = run_program(
        opened,
        'hits = search("green lamp", 2)\npartial = map("Which colour?", hits)\n'
        'reduce("Which colour?", [p for p in partial if answered(p)])',
    )
    assert answer.finish_reason == "answered"
    assert [step.verb for step in opened.transcript.steps] == ["search", "map", "reduce"]
    assert run_program(session(), "[1, 'a', search('bell', 1)[0]]").text.startswith('[1, "a", {')
    assert run_program(session(), "'not found'").finish_reason == "not_found"


def test_running_out_within_a_program_is_an_answer():
    for program in ("map('q', [peek(0, 90)] + [peek(90, 180)])", "ask('what is green?')"):
        assert run_program(session(budget_tokens=20), program).finish_reason == "budget"
    cancelled = session()
    cancelled.close()
    assert run_program(cancelled, "1").finish_reason == "cancelled"


@pytest.mark.parametrize(
    "program",
    [
        "''.join(['a'])",
        "search.__globals__",
        "().__class__.__bases__[0].__subclasses__()",
        "(1).__class__",
        "'{0.__class__}'.format(1)",
        "f'{peek}'",
        "peek",
        "x = peek",
        "__import__('os')",
        "import os",
        "from os import system",
        "exec('1')",
        "eval('1')",
        "open('/etc/passwd')",
        "getattr(1, 'real')",
        "globals()",
        "type(1)",
        "lambda: 1",
        "(lambda x: x)(1)",
        "def f():\n  return 1",
        "class A:\n  pass",
        "while True:\n  1",
        "for x in [1]:\n  x",
        "with x:\n  1",
        "try:\n  1\nexcept Exception:\n  2",
        "del x",
        "assert True",
        "raise ValueError",
        "global x",
        "return 1",
        "yield 1",
        "await x",
        "(x := 5)",
        "x: int = 5",
        "x += 1",
        "x, y = [1, 2]",
        "x[0] = 1",
        "x = y = 1",
        "{1, 2}",
        "{'a': 1}",
        "{x for x in [1]}",
        "{x: 1 for x in [1]}",
        "(x for x in [1])",
        "[*[1]]",
        "max(*[1, 2])",
        "peek(**{})",
        "b'bytes'",
        "1j",
        "...",
        "1 if",
        "peek = 1",
        "[len for len in [1]]",
        "match 1:\n  case _:\n    2",
        "@peek\ndef f(): pass",
        "`1`",
        "\x00",
        "",
        "# nothing",
        "unknown",
        "unknown(1)",
        "search('a', 1)[0]['__class__']",
        "search('a', 1)[0][0]",
        "print(1)",
        "1 @ 1",
        "1 is 1",
    ],
)
def test_what_is_no_program(program):
    with pytest.raises(ProgramError):
        run_program(session(), program)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("'a' * 1000000000", "Mult"),
        ("[0] * 1000000000", "Mult"),
        ("9 ** 9 ** 9", "Pow"),
        ("1 << 1000000", "LShift"),
        ("'%1000000000d' % 1", "Mod"),
        ("1 // 0", "FloorDiv"),
        ("~1", "Invert"),
        ("9007199254740993", "beyond"),
        ("1e999", "beyond"),
        ("x = 9007199254740992\nx + 1", "beyond"),
        ("'x' + 1", "joins two"),
        ("-'x'", "USub"),
        ("[1][5]", "no part 5"),
        ("[1]['a']", "counted from 0"),
        ("5[0]", "counted from 0"),
        ("[1][::0]", "step"),
        ("[1]['a':]", "whole numbers"),
        ("5[1:]", "slices"),
        ("[1] == [1]", "can be compared"),
        ("'a' < 1", "numbers compare"),
        ("[1] in [[1]]", "`in`"),
        ("sorted([1, 'a'])", "sorted takes"),
        ("sorted(5)", "sorted takes"),
        ("min([])", "min takes"),
        ("len(5)", "len takes"),
        ("answered(5)", "answered takes"),
        ("join(1, 2)", "join takes"),
        ("join('', [1])", "make them with str"),
        ("str([1])", "str takes"),
        ("peek()", "missing"),
        ("peek(1, 2, 3, 4)", "too many"),
        ("peek(0, 1, bogus=2)", "bogus"),
        ("[x for x in 5]", "through a list"),
        ("[x for x, y in [[1, 2]]]", "for name in list"),
        ("[1 for x in 'text']", "through a list"),
    ],
)
def test_what_is_refused_says_where_and_why(program, reason):
    with pytest.raises(ProgramError, match=reason) as caught:
        run_program(session(), program)
    assert "line " in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        "query(5, 'text')",
        "query('q', 5)",
        "query('q', [1, 'a'])",
        "query('q', ['a', 1])",
        "map('q', 5)",
        "map('q', [None])",
        "map([], ['text'])",
        "reduce('q', [1])",
        "reduce('q', 5)",
        "ask(5)",
        "ask('q', 'a')",
        "search(5)",
        "search('q', 'many')",
        "search('q', 10 - 20)",
        "search('q', 1, [])",
        "peek('a', 'b')",
        "peek(0, 1, [])",
        "peek(0, 900000)[5]",
        "peek(0 - 5, 2)",
        "chunks([1])",
    ],
)
def test_verbs_in_programs_refuse_what_they_cannot_take(program):
    with pytest.raises(SessionError):
        run_program(session(max_peek=100), program)


BOMBS = {
    "doubling text": "a = 'x'\n" + "a = a + a\n" * 60,
    "doubling list": "a = [0]\n" + "a = a + a\n" * 60,
    "nested lists": "a = [1]\n" + "a = [a, a]\n" * 200,
    "nested comprehensions": "[1 " + "for x in a " * 10 + "]",
    "wide comprehensions": "a = [[0 for x in a] for y in a]\nb = [a for x in a]\nb",
    "comprehension of verbs": "[search('key', 100) for x in a for y in a]",
    "comparisons": "[x in a for x in a for y in a for z in a]",
    "big texts in a list": "t = peek(0, 500)\n" + "t = t + t\n" * 8 + "[[t for x in a] for y in a]",
    "joins": "t = join('x', [str(x) for x in a])\n" + "t = join(t, [t, t])\n" * 30,
    "sorting": "[sorted(a) for x in a for y in a for z in a]",
    "long chain": "+".join(["1"] * 4000),
    "brackets": "[" * 4000,
    "balanced brackets": "[" * 90 + "]" * 90,
    "parentheses": "(" * 4000 + "1" + ")" * 4000,
    "unary": "-" * 8000 + "1",
    "nots": "not " * 2000 + "1",
    "calls": "len(" * 2000,
    "subscripts": "a" + "[0]" * 2500,
    "conditionals": "1 if 1 else " * 600 + "1",
    "huge number": "9" * 8000,
    "long program": "1\n" * MAX_PROGRAM,
    "many lines": "1\n" * 3000,
    "comparison chain": "1 < " * 2000 + "1",
}


@pytest.mark.parametrize("program", BOMBS.values(), ids=BOMBS)
def test_bombs_end_soon_with_an_error(program):
    numbers = f"a = [{', '.join(map(str, range(100)))}]\n"
    program = program if len(program) > MAX_PROGRAM - 500 else numbers + program
    started = time.process_time()
    with pytest.raises(SessionError):
        run_program(session(), program)
    assert time.process_time() - started < 5


NAMES = ["peek", "search", "map", "reduce", "query", "ask", "len", "x", "y", "str", "__class__"]
ATOMS = st.sampled_from(["0", "1", "99", "'key'", "[1, 2]", "[]", "x", "None", "1.5", *NAMES])


def combined(inner):
    operators = st.sampled_from([" + ", " - ", " * ", " == ", " in ", " and ", " < ", ".", ","])
    return st.one_of(
        st.builds("({}{}{})".format, inner, operators, inner),
        st.builds("{}({}, {})".format, st.sampled_from(NAMES), inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("[{} for x in {}]".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(ATOMS, combined, max_leaves=12))
def test_generated_programs_give_a_value_or_our_error(expression):
    opened = session(max_steps=20)
    with contextlib.suppress(MHCError):
        run_program(opened, f"x = [0, 'a', 2]\ny = search('lamp', 2)\n{expression}")
    assert opened.usage.total_tokens <= 5000


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_a_value_or_our_error(program):
    with contextlib.suppress(MHCError):
        run_program(session(), program)
