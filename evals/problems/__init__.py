"""Where questions come from: files, data sets on the hub, and a generator of word problems.

In: a file, a directory, a name on the hub, or `builtin:LEVEL`. Out: `Problem`s of a question and
its worked answer; or the rows of any data set, and what is wrong with those that are malformed. May
import mhc_model's ground (errors, config) only: reading problems needs no torch.

    problem.py        `Problem`: one question with its answer
    styles.py         how much an answer says: written, and told from its text
    rows.py           rows of JSON lines or of the hub, parsed one by one
    sources.py        problems in GSM8K's format, from any source
    word_problems.py  the built-in generator: levels, splits, seeds
    stories.py        its texts and numbers
"""

from evals.problems.problem import Problem, with_words
from evals.problems.rows import Parsed, RowError, parse_rows, read_file, split_file
from evals.problems.sources import BUILTIN, find_rows, load_problems, read_problems
from evals.problems.styles import STYLES, Style, expected_style, restyle, style_of
from evals.problems.word_problems import LEVELS, SPLITS, generate

__all__ = [
    "BUILTIN",
    "LEVELS",
    "SPLITS",
    "STYLES",
    "Parsed",
    "Problem",
    "RowError",
    "Style",
    "expected_style",
    "find_rows",
    "generate",
    "load_problems",
    "parse_rows",
    "read_file",
    "read_problems",
    "restyle",
    "split_file",
    "style_of",
    "with_words",
]
