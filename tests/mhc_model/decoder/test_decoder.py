"""The decoder against NanoChat in transformers, a forward written out, and itself without mHC."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import draw_gates, draw_tokens
from torch import Tensor

from mhc_model import Decoder, EngineError
from mhc_model.decoder import Attend
from mhc_model.streams import connections

SAME = {"stream_embedding_std": 0.0}  # the preset that equals the plain model at init


# Oracles


@pytest.mark.parametrize("n_kv_heads", [None, 2])
@pytest.mark.parametrize("softcap", [15.0, None])
def test_plain_model_equals_transformers_nanochat(tiny_model, n_kv_heads, softcap):
    nanochat = pytest.importorskip("transformers.models.nanochat")
    model = tiny_model(plain=True, n_kv_heads=n_kv_heads, softcap=softcap)
    config = model.config
    theirs = nanochat.NanoChatForCausalLM(
        nanochat.NanoChatConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_ratio * config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            final_logit_softcapping=softcap,
        )
    ).eval()

    def half_turned(weight: Tensor) -> Tensor:
        """NanoChat rotates the other way: negate the second half of every query and key head."""
        heads = weight.clone().unflatten(0, (-1, 2, config.head_dim // 2))
        heads[:, 1] *= -1
        return heads.flatten(0, 2)

    weights = {"model.embed_tokens.weight": model.embedding.weight}
    weights["lm_head.weight"] = model.head.weight
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}."
        attention = layer.attention
        weights[prefix + "self_attn.q_proj.weight"] = half_turned(attention.q_proj.weight.detach())
        weights[prefix + "self_attn.k_proj.weight"] = half_turned(attention.k_proj.weight.detach())
        weights[prefix + "self_attn.v_proj.weight"] = attention.v_proj.weight
        weights[prefix + "self_attn.o_proj.weight"] = attention.o_proj.weight
        weights[prefix + "mlp.fc1.weight"] = layer.mlp.up_proj.weight
        weights[prefix + "mlp.fc2.weight"] = layer.mlp.down_proj.weight
    theirs.load_state_dict(weights, strict=True)
    tokens = draw_tokens(config, t=config.max_seq_len)
    with torch.no_grad():
        ours, expected = model(tokens), theirs(tokens).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_streams", [2, 4])
def test_mhc_at_init_equals_the_plain_model(tiny_config, randomise, n_streams):
    """Mixing copies of one stream does nothing: any gates, any contrast of H_pre."""
    plain = randomise(Decoder(tiny_config(plain=True)))
    model = Decoder(tiny_config(mhc={**SAME, "n_streams": n_streams}))
    shared = model.state_dict() | plain.state_dict()
    model.load_state_dict(shared)
    tokens = draw_tokens(plain.config)
    with torch.no_grad():
        expected = plain(tokens)
        for gates in (None, draw_gates(model.config), torch.zeros(2, 6), torch.ones(2, 6)):
            torch.testing.assert_close(model(tokens, gates), expected, atol=1e-5, rtol=0)


def test_equals_a_reference_forward(tiny_model):
    """The order of the gates, the norms, the mean of the streams, written out once more."""
    model = tiny_model()
    config, tokens = model.config, draw_tokens(model.config)
    gates = draw_gates(config)
    attend = Attend(model.rope_cos[None, None, :10], model.rope_sin[None, None, :10])

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    with torch.no_grad():
        x = norm(model.embedding.weight[tokens])
        streams = [x + model.stream_embedding[i] for i in range(4)]
        for layer_index, layer in enumerate(model.layers):
            sublayers = (
                (layer.attention_connection, lambda h, layer=layer: layer.attention(h, attend)),
                (layer.mlp_connection, layer.mlp),
            )
            for offset, (connection, sublayer) in enumerate(sublayers):
                _, (pre, post, res) = connection.enter(torch.stack(streams, dim=2))
                y = sublayer(norm(sum(pre[..., i, None] * streams[i] for i in range(4))))
                gate = gates[:, 2 * layer_index + offset, None, None]
                mixed = [sum(res[..., i, j, None] * streams[i] for i in range(4)) for j in range(4)]
                streams = [
                    (1 - gate) * streams[j] + gate * mixed[j] + post[..., j, None] * y
                    for j in range(4)
                ]
        logits = norm(sum(streams) / 4) @ model.head.weight.T
        expected = 15 * torch.tanh(logits / 15)
        torch.testing.assert_close(model(tokens, gates), expected, atol=1e-4, rtol=0)


def test_gate_zero_is_bitwise_identity_mixing(tiny_model, monkeypatch):
    model = tiny_model()
    tokens = draw_tokens(model.config)
    with torch.no_grad():
        closed = model(tokens, torch.zeros(2, 6))
        half = model(tokens, torch.full((2, 6), 0.5))
        monkeypatch.setattr(
            connections, "gated", lambda res, gate: torch.eye(4).expand(res.shape).contiguous()
        )
        identity = model(tokens, torch.ones(2, 6))
    assert torch.equal(closed, identity)
    assert not torch.equal(closed, half)


# Routing


@pytest.mark.parametrize("autocast", [False, True])
def test_routing_is_doubly_stochastic_after_any_change_of_the_weights(
    tiny_model, observe, autocast
):
    model = tiny_model(mhc={"res_diagonal": 4.0})
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        seen = observe(model, draw_tokens(model.config, b=4, t=40), draw_gates(model.config, b=4))
    assert [module for module, _, _ in seen] == model.connections()
    assert seen[0][1].dtype == (torch.bfloat16 if autocast else torch.float32)
    for connection, _, out in seen:
        assert out.res.dtype == torch.float32
        assert out.res.min() >= 0
        assert (out.res.sum(-1) - 1).abs().max() < 1e-5
        assert (out.res.sum(-2) - 1).abs().max() < 1e-5
        assert (out.res - connection.initial_res()).abs().max() > 0.1


def test_connections_are_in_gate_order(tiny_model):
    model = tiny_model()
    assert [connection.sublayer for connection in model.connections()] == list(range(6))


# The rest of the contract


@pytest.mark.parametrize("plain", [True, False])
def test_later_tokens_do_not_change_earlier_logits(tiny_model, plain):
    model = tiny_model(plain=plain)
    tokens = draw_tokens(model.config)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % model.config.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-2)


@pytest.mark.parametrize("plain", [True, False])
def test_sequences_beyond_the_context_are_refused(tiny_model, plain):
    model = tiny_model(plain=plain)
    model(draw_tokens(model.config, t=48))
    with pytest.raises(EngineError, match=r"49 tokens.*48"):
        model(draw_tokens(model.config, t=49))


def test_plain_and_mhc_of_one_seed_share_their_matrices(tiny_config):
    plain, mhc = Decoder(tiny_config(plain=True), seed=3), Decoder(tiny_config(), seed=3)
    assert Decoder(tiny_config(), seed=3).state_dict().keys() == mhc.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, mhc.state_dict()[name]), name
    other = Decoder(tiny_config(plain=True), seed=4)
    assert not torch.equal(other.embedding.weight, plain.embedding.weight)


def test_initialisation_leaves_the_global_generator_alone(tiny_config):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = Decoder(tiny_config(), seed=1).embedding.weight
    torch.manual_seed(5)
    second = Decoder(tiny_config(), seed=1).embedding.weight
    assert torch.equal(first, second)
    assert expected != torch.rand(1)  # torch's own layers draw; the weights do not depend on it


def test_first_prediction_is_all_but_uniform(tiny_config):
    config = tiny_config()
    assert Decoder(config)(draw_tokens(config)).abs().max() < 0.05


def test_logits_are_float32_and_capped(tiny_model):
    model = tiny_model()
    hidden = 1e4 * torch.randn(2, 5, 32)
    logits = model.logits(hidden)
    assert logits.abs().max() <= 15.0
    assert model.logits(hidden.bfloat16().float()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(draw_tokens(model.config)).dtype == torch.float32


def test_bfloat16_autocast_stays_near_float32(tiny_model):
    model = tiny_model()
    tokens, gates = draw_tokens(model.config), draw_gates(model.config)
    with torch.no_grad():
        exact = model(tokens, gates)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = model(tokens, gates)
    assert (near - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.02
