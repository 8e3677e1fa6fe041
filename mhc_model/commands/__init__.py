"""`python -m mhc_model COMMAND`: one file a command, its options and what it prints.

Each has `main(argv) -> int`, the exit status. Nothing else imports them, and they may import
everything; but what loads torch only after the options are read, so that `--help` is quick.

    convert.py, export.py, validate.py   pretrained models in and out, and whether they are equal
    generate.py                          answers of checkpoints or gates, side by side
    inspect.py                           streams, gates and mixing of a checkpoint
    recurse.py                           a question about a text of any length
    validate_model.py                    is a checkpoint whole, does it work
"""

__all__ = ["convert", "export", "generate", "inspect", "recurse", "validate", "validate_model"]
