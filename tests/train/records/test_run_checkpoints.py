"""Which checkpoints stay, and what a run says of itself beside the loss."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mhc_model import ConfigError, Engine, Request, SamplingParams
from train.config import SamplesConfig
from train.loop import check_samples, peak_memory, peak_tflops, write_samples
from train.records import Best, Progress, read_rows


def with_bits(trainer, bits: dict[int, float]):
    """The trainer, validating to figures that are given by step."""
    trainer.evaluate = lambda: {"val_loss": 1.0, "val_bpb": bits[trainer.step]}
    return trainer


BITS = {2: 3.0, 4: 2.0, 6: 1.0, 8: 4.0, 10: 2.5, 12: 2.25}


def test_the_best_checkpoint_stays_beside_the_last(make_config, make_trainer, persist_in):
    config = make_config(steps=12, checkpoint_every=4, eval_every=2)
    trainer = with_bits(make_trainer(config), BITS)
    trainer.fit(persist_in(trainer.run))
    # Step 6 is between two intervals: it was saved for being the best.
    assert trainer.run.steps() == [6, 8, 12]
    best = json.loads((Path(trainer.run.path) / "best.json").read_text())
    assert best == {"step": 6, "val_bpb": 1.0}
    config = make_config(name="plain", steps=12, checkpoint_every=4, eval_every=2, keep_best=False)
    plain = with_bits(make_trainer(config), BITS)
    plain.fit(persist_in(plain.run))
    assert plain.run.steps() == [8, 12]
    assert not (Path(plain.run.path) / "best.json").exists()


def test_a_resumed_run_knows_the_best_so_far(make_config, make_trainer, persist_in):
    config = make_config(steps=12, checkpoint_every=4, eval_every=2)
    trainer = with_bits(make_trainer(config), BITS)
    persist = persist_in(trainer.run)

    def stop_after_8(step, metrics, directory):
        persist(step, metrics, directory)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(stop_after_8)
    resumed = with_bits(make_trainer(config), BITS)
    resumed.resume()
    assert resumed.step == 8
    resumed.fit(persist)
    assert resumed.run.steps() == [6, 8, 12]
    assert Best(resumed.run).step == 6
    # A best checkpoint that is gone is the best no more.
    resumed.run.delete_step(6)
    assert Best(resumed.run).step == 12
    assert json.loads((Path(resumed.run.path) / "best.json").read_text())["step"] == 12


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


def test_mfu_is_the_share_of_the_peak(make_config, make_trainer):
    trainer = make_trainer(make_config(peak_tflops=2.0))
    flops = trainer.decoder.estimate_flops()
    at_peak = trainer._tokens_per_second_at_peak()
    assert at_peak == pytest.approx(2e12 / flops)
    progress = Progress(1, 10, tokens_per_step=100, tokens_per_second_at_peak=400.0)
    assert "mfu" not in progress.timing(1, 9.0)
    timing = [progress.timing(step, 1.0) for step in range(2, 6)][-1]
    assert timing["mfu"] == pytest.approx(0.25)
    row = {"step": 5, "loss": 1.0, "lr_multiplier": 1.0, "grad_norm": 1.0, "peak_memory_gib": 1.5}
    assert "| mem 1.50 GiB | MFU 25.0% | 100 tok/s |" in progress.step_line(row | timing)
    assert make_trainer(make_config())._tokens_per_second_at_peak() is None


def test_flops_are_of_the_sequences_that_are_trained(make_config, make_trainer):
    decoder = make_trainer(make_config()).decoder
    whole, half = decoder.estimate_flops(), decoder.estimate_flops(context=16)
    assert whole == decoder.estimate_flops(32)
    assert whole - half == 12 * 2 * 16 * 16  # layers, width, tokens fewer


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L20", None),
        ("Another", None),
    ],
)
def test_known_devices(name, tflops):
    assert peak_tflops(name, "bfloat16") == tflops
    assert peak_tflops(name, "float32") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 50_000_000)
    assert peak_memory(torch.device("cpu")) >= before + 150_000_000
    assert math.isfinite(float(held[0]))
