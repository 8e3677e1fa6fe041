"""POST /v1/recursive: a question, or a program, over a text far longer than the context.

In: a text and a task. Out: an answer with what it rests on, whole or as a stream of steps. The
session itself is mhc_model.recursion's; here it gets a thread, a deadline, limits and a model to
read with. May import mhc_model, errors, settings, monitoring, completions and service.

    schemas.py  bodies and responses
    model.py    the served model as a session reads with it
    service.py  `RecursiveService`: sessions, each in a thread
"""

from serve.recursive.model import ServedModel
from serve.recursive.schemas import RecursiveRequest, RecursiveResponse
from serve.recursive.service import RecursiveService

__all__ = ["RecursiveRequest", "RecursiveResponse", "RecursiveService", "ServedModel"]
