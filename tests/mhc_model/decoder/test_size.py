"""How large a model is, counted by hand; and the same without building it."""

from __future__ import annotations

from mhc_model import Decoder
from mhc_model.decoder import describe


def test_counts(tiny_config):
    plain, mhc = Decoder(tiny_config(plain=True)), Decoder(tiny_config())
    v, c, layers = 61, 32, 3
    matrices = layers * (4 * c * c + 8 * c * c) + v * c
    assert plain.count_parameters() == matrices + v * c
    connection = 4 * c * 24 + 24 + 3
    assert mhc.count_parameters() == plain.count_parameters() + 6 * connection + 4 * c + 6
    assert plain.estimate_flops() == 6 * matrices + 12 * layers * c * 48
    streams = 6 * 6 * (4 * c * 24) + 6 * 6 * 24 * c
    assert mhc.estimate_flops() == plain.estimate_flops() + streams


def test_the_size_without_the_model(tiny_model):
    model, plain = tiny_model(), tiny_model(plain=True)
    streams = model.count_parameters() - plain.count_parameters()
    assert describe(Decoder, model.config) == (
        f"{model.count_parameters():,} parameters ({streams:,} of them for the streams), "
        f"{model.estimate_flops():,} FLOPs per token"
    )
    assert "streams" not in describe(Decoder, plain.config)
