"""What the service shares with Serve's proxy; its request ids are tested with that."""

from __future__ import annotations

import json

from serve.basics import JsonLog


def test_a_log_takes_whole_lines_of_several_writers(tmp_path):
    path = tmp_path / "log"
    logs = [JsonLog(str(path)), JsonLog(str(path))]
    for number in range(50):
        logs[number % 2].write({"number": number})
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [*range(50)]
    JsonLog("off").write({"a": 1})
