"""GET /v1/gates and POST /v1/routing against the model itself."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional as F

from mhc_model import Engine, save_checkpoint
from mhc_model.decoder import watching
from mhc_model.streams import gated
from serve import routing as served_routing

TEXT = "Question: Tom has 7"


@pytest.fixture(scope="module")
def model(checkpoint):
    return Engine.from_checkpoint(checkpoint, device="cpu").model


@torch.no_grad()
def seen_by(model, tokens, gates):
    """For each sublayer the streams (t, n, c), its coefficients and its gate."""
    seen = []
    with watching(model, lambda k, x, out, gate: seen.append((x[0], out, gate[0]))):
        model(torch.tensor([tokens]), gates[None])
    return seen


def close(found, expected) -> None:
    torch.testing.assert_close(torch.tensor(found), expected.float(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("gates", [None, "learned", 0.5, [0.0, 1.0, 0.5], [1, 0, 1, 0, 1, 0]])
def test_routing_is_what_the_model_does(call, model, tokenizer, gates, per_token):
    body = {"prompt": TEXT, "gates": gates, "per_token": per_token, "model": "tiny"}
    answer = call("POST", "/v1/routing", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    tokens = tokenizer.encode(TEXT, bos=True)
    assert found["token_ids"] == tokens
    assert "".join(found["tokens"][1:]) == TEXT
    numbers = None if gates == "learned" else gates
    used = model.gate_rows([numbers])[0]
    close(found["gates"], used)
    assert found["gates_source"] == ("learned" if numbers is None else "request")
    assert (found["n_streams"], found["per_token"]) == (4, per_token)
    product = torch.eye(4).expand(len(tokens), 4, 4)
    for k, (x, out, gate) in enumerate(seen_by(model, tokens, used)):
        sublayer = found["sublayers"][k]
        mixing = gated(out.res[0], gate.expand(len(tokens)))
        pairs = [(i, j) for i in range(4) for j in range(i)]
        similarity = torch.stack([F.cosine_similarity(x[:, i], x[:, j], dim=-1) for i, j in pairs])
        for name, values in (
            ("h_pre", out.pre[0]),
            ("h_post", out.post[0]),
            ("h_res", out.res[0]),
            ("identity_distance", torch.linalg.matrix_norm(mixing - torch.eye(4))),
            ("stream_similarity", similarity.mean(dim=0)),
        ):
            close(sublayer[name], values if per_token else values.mean(dim=0))
        close(sublayer["gate"], gate)
        assert 0 <= sublayer["row_error"] < 1e-5
        assert 0 <= sublayer["column_error"] < 1e-5
        product = product @ mixing
        gain = max(product.sum(-1).max().item(), product.sum(-2).max().item(), 1.0)
        assert found["composite_gain"][k] == pytest.approx(gain, abs=1e-5)
    names = ["layer0.attention", "layer0.mlp", "layer1.attention"]
    assert [sublayer["name"] for sublayer in found["sublayers"]][:3] == names


def test_token_ids_are_taken_as_they_are(call):
    found = call("POST", "/v1/routing", json={"prompt": [5, 6, 7]}).json()
    assert found["token_ids"] == [5, 6, 7]


def test_routing_beside_a_running_batch_sees_its_own_pass_only(
    make_service, make_engine, make_valve, call, wait_until
):
    engine = make_engine(max_batch=2)
    valve = make_valve(engine)
    service = make_service(engine)
    results = {}

    def send(name, path, body):
        results[name] = call("POST", path, service, json=body).json()

    valve.open.set()
    send("alone", "/v1/routing", {"prompt": TEXT, "gates": 0.3, "per_token": True})
    valve.open.clear()
    busy = {"prompt": ["a b c"] * 2, "max_tokens": 60, "gates": 0.9, "ignore_eos": True}
    threads = [threading.Thread(target=send, args=("busy", "/v1/completions", busy))]
    threads[0].start()
    wait_until(lambda: service.health().active == 2)
    body = {"prompt": TEXT, "gates": 0.3, "per_token": True}
    threads.append(threading.Thread(target=send, args=("beside", "/v1/routing", body)))
    threads[1].start()
    wait_until(lambda: service.health().waiting == 1)
    valve.open.set()
    for thread in threads:
        thread.join(20)
    assert results["beside"] == results["alone"]
    assert len(results["busy"]["choices"]) == 2
    assert engine.model.watch is None


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": TEXT, "gates": [0.5, 0.5]}, 400, "gates"),
        ({"prompt": TEXT, "gates": 1.5}, 400, "gates"),
        ({"prompt": TEXT, "gates": "policy"}, 400, "gates"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[1]]}, 400, "prompt"),
        ({"prompt": [True]}, 400, "prompt"),
        ({"prompt": [10_000]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [1] * 97}, 400, None),
        ({}, 400, "prompt"),
        ({"prompt": TEXT, "per_token": "yes"}, 400, "per_token"),
        ({"prompt": TEXT, "gate": 1}, 400, "gate"),
        ({"prompt": TEXT, "model": "gpt-4"}, 404, "model"),
    ],
)
def test_mistakes_are_named(call, body, status, param):
    answer = call("POST", "/v1/routing", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"]
    if param is not None:
        assert error["param"] == param


def test_figures_of_every_token_are_bounded(call, monkeypatch, model):
    each = served_routing.values_per_token(model.config)
    body = {"prompt": [1, 2, 3], "per_token": True}
    answer = call("POST", "/v1/routing", json=body).json()
    sublayer = answer["sublayers"][0]
    numbers = sum(torch.tensor(sublayer[key]).numel() for key in ("h_pre", "h_post", "h_res"))
    numbers += len(sublayer["identity_distance"]) + len(sublayer["stream_similarity"])
    assert numbers * 6 == 3 * each
    monkeypatch.setattr(served_routing, "MAX_VALUES", 3 * each - 1)
    answer = call("POST", "/v1/routing", json=body)
    assert answer.status_code == 400
    assert "so 2 tokens:" in answer.json()["error"]["message"]
    assert call("POST", "/v1/routing", json={"prompt": [1, 2, 3]}).status_code == 200


def test_the_gates_are_described(call, model, checkpoint):
    found = call("GET", "/v1/gates").json()
    close(found.pop("learned"), model.learned_gates())
    names = [f"layer{i}.{kind}" for i in range(3) for kind in ("attention", "mlp")]
    assert found.pop("sublayers") == names
    card = call("GET", "/v1/models").json()["data"][0]
    assert found == {
        "object": "gates",
        "model": "tiny",
        "checkpoint": card["checkpoint"],
        "n_layers": 3,
        "n_gates": 6,
        "n_streams": 4,
        "allowed_lengths": [1, 3, 6],
        "minimum": 0.0,
        "maximum": 1.0,
        "policy": False,
        "behaviours": [],
    }


def test_streams_that_do_not_mix_have_routing_but_no_gates(
    call, make_service, make_engine, tokenizer, tiny_model, tmp_path
):
    mhc = {"projection": "identity"}
    still = tiny_model(mhc=mhc, vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "still", still, tokenizer)
    service = make_service(make_engine(tmp_path / "still"))
    found = call("GET", "/v1/gates", service).json()
    assert (found["n_gates"], found["n_streams"], found["learned"]) == (0, 4, None)
    answer = call("POST", "/v1/routing", service, json={"prompt": TEXT})
    assert answer.status_code == 200, answer.text
    routing = answer.json()
    assert routing["composite_gain"] == [1.0] * 6
    assert routing["sublayers"][0]["h_res"] == torch.eye(4).tolist()
    answer = call("POST", "/v1/routing", service, json={"prompt": TEXT, "gates": 0.5})
    assert answer.status_code == 400
    assert "mhc.projection: identity" in answer.json()["error"]["message"]


def test_a_plain_model_has_neither(call, make_service, make_engine, plain_checkpoint):
    service = make_service(make_engine(plain_checkpoint))
    found = call("GET", "/v1/gates", service).json()
    assert (found["n_gates"], found["sublayers"], found["learned"]) == (0, [], None)
    assert found["allowed_lengths"] == []
    answer = call("POST", "/v1/routing", service, json={"prompt": TEXT})
    assert answer.status_code == 400
    assert "plain" in answer.json()["error"]["message"]
