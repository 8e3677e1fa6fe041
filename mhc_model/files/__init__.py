"""Files: written whole or not at all, read as far as they are what they should be.

In: paths. Out: texts, values and rows, or an error that names file and line. May import errors and
`mhc_model.running`.

    whole.py      written under a temporary name and renamed; hashes, lines
    rows.py       one JSON value a line, for all rooms alike
    locks.py      a directory that one process at a time writes to
    untrusted.py  files that others wrote: kinds, sizes and nesting first
"""

from mhc_model.files.locks import locked_directory
from mhc_model.files.rows import (
    LONGEST_ROW,
    Row,
    RowFault,
    parse_row,
    read_own_rows,
    read_rows,
)
from mhc_model.files.untrusted import (
    FLOATS,
    MAX_HEAD,
    MAX_JSON,
    MAX_TOKENIZER,
    Stored,
    check_regular,
    parse_object,
    plain_names,
    read_file,
    read_object,
    stored_tensors,
    token_ids,
    without_panics,
)
from mhc_model.files.whole import (
    file_sha256,
    read_lines,
    replace_bytes,
    replace_json,
    replace_text,
    split_lines,
)

__all__ = [
    "FLOATS",
    "LONGEST_ROW",
    "MAX_HEAD",
    "MAX_JSON",
    "MAX_TOKENIZER",
    "Row",
    "RowFault",
    "Stored",
    "check_regular",
    "file_sha256",
    "locked_directory",
    "parse_object",
    "parse_row",
    "plain_names",
    "read_file",
    "read_lines",
    "read_object",
    "read_own_rows",
    "read_rows",
    "replace_bytes",
    "replace_json",
    "replace_text",
    "split_lines",
    "stored_tensors",
    "token_ids",
    "without_panics",
]
