import pytest
import torch

from mhc_model import Decoder, Engine, Request, SamplingParams, generate, save_checkpoint
from mhc_model.__main__ import main
from mhc_model.decoder import describe
from mhc_model.errors import EngineError, GateError
from mhc_model.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["Question: Tom has 12 apples.\nAnswer: 19\n"], vocab_size=270)


@pytest.fixture(scope="module")
def checkpoints(tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    for name, plain in (("plain", True), ("mhc", False)):
        model = tiny_model(plain=plain, vocab_size=TOKENIZER.vocab_size)
        save_checkpoint(root / name, model, TOKENIZER)
    return root


def test_it_is_the_engine(checkpoints):
    engine = Engine.from_checkpoint(checkpoints / "mhc", device="cpu")
    prompts = ["Question: Tom", "12"]
    rows = TOKENIZER.encode_batch(prompts, bos=True)
    sampling = SamplingParams(max_tokens=7, temperature=1.0, seed=3)
    requests = [Request(row, gates=0.3, sampling=sampling) for row in rows]
    expected = [completion.text for completion in engine.generate(requests)]
    options = {"max_tokens": 7, "temperature": 1.0, "seed": 3}
    assert generate(checkpoints / "mhc", prompts, 0.3, **options) == expected
    assert generate(engine, prompts[0], 0.3, **options) == expected[:1]
    assert generate(engine, prompts, 0.9, **options) != expected


def test_what_is_refused(checkpoints, tiny_model):
    with pytest.raises(EngineError, match="max_token"):
        generate(checkpoints / "mhc", "a", max_token=3)
    with pytest.raises(GateError, match="plain"):
        generate(checkpoints / "plain", "a", 0.5, max_tokens=2)
    with pytest.raises(EngineError, match="no tokenizer"):
        generate(Engine(tiny_model()), "a", max_tokens=2)


# validate-model


def run(path, capsys):
    status = main(["validate-model", "--checkpoint", str(path)])
    return status, capsys.readouterr()


@pytest.mark.parametrize("name", ["plain", "mhc"])
def test_a_whole_model_passes(checkpoints, name, capsys):
    status, printed = run(checkpoints / name, capsys)
    assert status == 0
    assert "FAILED" not in printed.out
    assert printed.out.count("ok    ") == (6 if name == "plain" else 7)


def test_weights_that_are_not_finite(tiny_model, tmp_path, capsys):
    model = tiny_model(vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    save_checkpoint(tmp_path / "bad", model, TOKENIZER)
    status, printed = run(tmp_path / "bad", capsys)
    assert status == 1
    assert "FAILED weights" in printed.out
    assert "layers.1.mlp.up_proj.weight" in printed.out
    assert "FAILED forward" in printed.out


def test_a_matrix_that_is_not_doubly_stochastic(tiny_model, tmp_path, capsys):
    """The plan's: tau 0.05 and 20 iterations, once the logits have moved."""
    mhc = {"projection": "iterations", "sinkhorn_iters": 2, "tau": 0.05}
    save_checkpoint(tmp_path / "plan", tiny_model(mhc=mhc))
    status, printed = run(tmp_path / "plan", capsys)
    assert status == 1
    assert "FAILED H_res" in printed.out
    assert "none: token ids only" in printed.out


def test_a_damaged_file(checkpoints, tiny_model, tmp_path, capsys):
    save_checkpoint(tmp_path / "cut", tiny_model())
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    status, printed = run(tmp_path / "cut", capsys)
    assert status == 2
    assert "model.safetensors" in printed.err


def test_the_size_without_the_model(tiny_model):
    model, plain = tiny_model(), tiny_model(plain=True)
    streams = model.count_parameters() - plain.count_parameters()
    assert describe(Decoder, model.config) == (
        f"{model.count_parameters():,} parameters ({streams:,} of them for the streams), "
        f"{model.estimate_flops():,} FLOPs per token"
    )
    assert "streams" not in describe(Decoder, plain.config)
