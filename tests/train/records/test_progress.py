"""What a run says of its speed."""

import pytest

from train.records import Progress


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


def test_the_first_steps_are_left_out_of_timing():
    progress = Progress(first_step=1, last_step=10, tokens_per_step=100)
    for step, seconds in enumerate([50.0, 50.0, 50.0, 1.0, 1.0], start=1):
        timing = progress.timing(step, seconds)
    assert timing["tokens_per_second"] == pytest.approx(100.0)
    row = {"step": 5, "loss": 1.0, "lr_multiplier": 1.0, "grad_norm": 1.0} | timing
    assert progress.step_line(row).startswith("step 05/10 | loss 1.0000 |")
    assert "ETA 0:00:05" in progress.step_line(row)
