"""Texts that a run writes for a person to read."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mhc_model import ConfigError, Engine, Request, SamplingParams
from train.config import SamplesConfig
from train.loop import check_samples, write_samples
from train.records import read_rows


def test_samples_are_what_the_engine_writes(make_config, make_trainer, persist_in, capsys):
    prompts = ["Question: Tom has", "7"]
    config = make_config(
        steps=2, eval_every=2, samples={"prompts": prompts, "max_tokens": 5}, log_every=1
    )
    trainer = make_trainer(config)
    trainer.fit(persist_in(trainer.run))
    samples = read_rows(trainer.run)[-1]["samples"]
    assert [sample["prompt"] for sample in samples] == prompts
    tokenizer = trainer.corpus.tokenizer
    engine = Engine(trainer.decoder, tokenizer)
    asked = [Request(tokenizer.encode(p, bos=True), sampling=SamplingParams(5)) for p in prompts]
    assert [s["text"] for s in samples] == [c.text for c in engine.generate(asked)]
    output = capsys.readouterr().out
    assert f"step 2/2 | {prompts[0]!r} -> {samples[0]['text']!r}" in output
    board = EventAccumulator(f"{trainer.run.path}/tensorboard").Reload()
    text = board.Tensors("samples/0/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text == prompts[0] + samples[0]["text"]
    assert "samples" not in read_rows(trainer.run)[0]


def test_samples_change_no_weight_and_no_mode(make_config, make_trainer):
    trainer = make_trainer(make_config())
    trainer.train_step()
    before = {name: value.clone() for name, value in trainer.decoder.state_dict().items()}
    trainer.decoder.train()
    config = SamplesConfig(prompts=("1",), max_tokens=8)
    write_samples(trainer.decoder, trainer.corpus.tokenizer, config)
    assert trainer.decoder.training
    assert all(value.equal(before[name]) for name, value in trainer.decoder.state_dict().items())
    trainer.train_step()  # gradients still flow


def test_prompts_that_do_not_fit_are_refused_before_training(tiny_corpus):
    with pytest.raises(ConfigError, match=r"'Question: .*' of \d+ tokens; .* context of 32"):
        check_samples(
            SamplesConfig(prompts=("Question: " * 20,)), tiny_corpus.tokenizer, context=32
        )
