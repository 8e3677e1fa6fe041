"""Two replicas give what one engine gives, and take only what they loaded the model for."""

from __future__ import annotations

import json

import pytest

from evals.__main__ import main
from evals.replicas import Replicas
from evals.results import read_results

ARC_ROWS = [
    {
        "question": f"What is {i}?",
        "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i % 3],
    }
    for i in range(6)
]


def lines_of(out):
    return (out / "samples.jsonl").read_text().splitlines()


@pytest.mark.ray
def test_replicas_give_the_same_samples(line, tmp_path, on_ray_head, monkeypatch):
    data = tmp_path / "data" / "arc_easy"
    data.mkdir(parents=True)
    rows = [json.dumps(row) for row in ARC_ROWS]
    rows.insert(2, '{"question": "no choices"}')
    (data / "test.jsonl").write_text("\n".join(rows) + "\n")
    arc = [*line, "--tasks", "arc_easy,sinkhorn", "--data", str(data.parent)]
    arc += ["--sinkhorn-iterations", "1"]
    assert main(arc) == 0
    alone = [json.loads(row) for row in lines_of(tmp_path / "out")]
    malformed = read_results(tmp_path / "out")["tasks"]["arc_easy"]["malformed"]
    assert malformed == [
        f"{data / 'test.jsonl'} line 3 lacks 'choices': it must be an object with text and label"
    ]
    dealt = []
    deal = Replicas.run

    def counted(self, items):
        dealt.extend(item.id for item in items)
        return deal(self, items)

    monkeypatch.setattr(Replicas, "run", counted)
    assert main([*arc, "--out", str(tmp_path / "two"), "--replicas", "2"]) == 0
    both = [json.loads(row) for row in lines_of(tmp_path / "two")]
    assert [row["id"] for row in both] == [row["id"] for row in alone]
    # The projection's variants are not what the replicas loaded: they run here.
    assert dealt == [row["id"] for row in alone if row["task"] == "arc_easy"]
    for row, other in zip(both, alone, strict=True):
        assert row.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-4)
        assert row == other
