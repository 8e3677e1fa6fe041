"""The served model in a session: gates as in completions, prompts beside everybody else's."""

from __future__ import annotations


def test_gates_are_those_of_completions(ask):
    answers = {gate: ask(gates=gate).json() for gate in (0.0, 1.0)}
    assert answers[0.0]["gates"] == [0.0] * 6
    assert answers[0.0]["gates_source"] == "request"
    results = [
        [step["result"] for step in answer["transcript"] if step["verb"] == "map"]
        for answer in answers.values()
    ]
    assert results[0] != results[1]
    for gates, code in (([0.1, 0.2], "invalid_gates"), ("policy", "no_policy")):
        response = ask(gates=gates)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_names_and_gates_of_prompt_and_answer(ask):
    def read(gates) -> tuple[dict, list]:
        answer = ask(gates=gates).json()
        return answer, [step["result"] for step in answer["transcript"] if step["verb"] == "map"]

    named, results = read("direct")
    assert (named["gates_source"], named["behaviour"]) == ("behaviour", "direct")
    assert named["gates"] == [0.0] * 6
    assert named["answer_gates"] is None
    assert results == read(0.0)[1]
    apart, results = read({"prompt": "direct", "answer": "worked"})
    assert (apart["gates"], apart["answer_gates"]) == ([0.0] * 6, [1.0] * 6)
    assert (apart["answer_gates_source"], apart["answer_behaviour"]) == ("behaviour", "worked")
    assert results == read({"prompt": 0.0, "answer": 1.0})[1]
    response = ask(gates="loud")
    assert response.status_code == 400
    assert '"learned", "direct", "worked"' in response.json()["error"]["message"]


def test_a_map_wider_than_the_queue_goes_through(ask):
    # The queue holds 12 prompts; this maps over 30.
    program = 'answers = map("Which?", [p for p in [[0, 40], [40, 80], [80, 120]] '
    program += "for again in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])\nlen(answers)"
    assert ask(question=None, program=program).json()["answer"] == "30"
