"""The transcript: every step with its tokens, as JSON."""

from __future__ import annotations

import json

import pytest
from recursion_cases import LONG, Reader, filler, open_session

from mhc_model.errors import SessionError


def test_the_transcript_adds_up_and_is_json():
    heard = []
    session = open_session(LONG, Reader(), listener=heard.append)
    session.peek(0, 10)
    session.ask("w99 factA w0")
    with pytest.raises(SessionError):
        session.peek(-1, 4)
    steps = json.loads(session.transcript.to_json())
    assert [step["number"] for step in steps] == list(range(len(steps)))
    assert sum(s["prompt_tokens"] for s in steps) == session.usage.prompt_tokens > 0
    assert sum(s["completion_tokens"] for s in steps) == session.usage.completion_tokens > 0
    assert steps[0]["result"] == LONG[:10]
    assert "0 to" in steps[-1]["error"]
    assert all(step["ms"] >= 0 for step in steps)
    search = next(step for step in steps if step["verb"] == "search")
    sources = next(step for step in steps if step["verb"] == "map")["arguments"]["sources"]
    assert [hit["start"] for hit in search["result"]] == [source["start"] for source in sources]
    assert "text" not in sources[0]
    assert heard == session.transcript.steps


def test_long_texts_are_cut_in_the_transcript_only():
    session = open_session(filler(2000), Reader())
    assert len(session.peek(0, 5000)) == 5000
    assert len(session.transcript.steps[0].result) < 1100
