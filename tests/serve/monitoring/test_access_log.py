"""The log has a line a request, with what it took and nothing of what it said."""

from __future__ import annotations

import json


def test_requests_are_logged_with_what_they_took(talk):
    lines = [json.loads(line) for line in talk.log.splitlines()]
    good, stream, bad, unknown = lines[:4]
    assert [line["id"] for line in lines[:3]] == ["good", "stream", "bad"]
    assert unknown["id"] == talk.answers[3].headers["x-request-id"] != "a\tb"
    assert (good["prompt_tokens"], good["completion_tokens"]) == (talk.prompt_tokens, 14)
    assert 0 < good["ttft_ms"] < good["ms"]
    assert len(good["gates_hash"]) == 64
    assert good["gates_hash"] != stream["gates_hash"]
    assert (good["gates_source"], stream["gates_source"]) == ("request", "learned")
    assert (bad["status"], bad["outcome"], bad["completion_tokens"]) == (400, "refused", 0)
    assert (unknown["status"], unknown["route"]) == (404, "unknown")
    assert "Tom" not in talk.log
