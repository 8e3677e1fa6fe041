"""The model in transformers: loaded by its auto classes, generating, refusing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mhc_model.checkpoint import load_checkpoint, save_checkpoint
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.errors import ConfigError, EngineError, GateError
from mhc_model.huggingface import MHCGatesConfig, MHCGatesForCausalLM
from mhc_model.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("private_module_cache")

CORPUS = ["Question: Tom has 12 apples and buys 7 more.\nAnswer: 19\n", "naïve 北京 🙂  \n\n\tx"]
TOKENIZER = Tokenizer.train(CORPUS, vocab_size=290)
# Strong mixing of unlike streams: other gates then give other greedy completions.
STRONG = MHCConfig(
    res_diagonal=0.0, pre_own=4.0, pre_others=-4.0, scale_init=0.01, stream_embedding_std=2.0
)


def build_decoder(mhc: MHCConfig | None) -> Decoder:
    """A small model with every parameter moved, so that no part of it is inert."""
    sizes = {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_model": 32, "max_seq_len": 48}
    model = Decoder(ModelConfig(vocab_size=TOKENIZER.vocab_size, mhc=mhc, **sizes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=["plain", "mhc"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "checkpoint"
    save_checkpoint(path, build_decoder(STRONG if request.param == "mhc" else None), TOKENIZER)
    return path


@pytest.fixture(scope="module")
def mhc_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, MHCGatesForCausalLM]:
    path = tmp_path_factory.mktemp("pair") / "checkpoint"
    decoder = build_decoder(STRONG)
    save_checkpoint(path, decoder, TOKENIZER)
    return decoder, MHCGatesForCausalLM.from_pretrained(path)


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOKENIZER.vocab_size, (rows, length), generator=generator)


def greedy(model: Decoder, tokens: Tensor, steps: int, gates: Tensor | None = None) -> Tensor:
    for _ in range(steps):
        following = model(tokens, gates)[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens


def generate(model: MHCGatesForCausalLM, tokens: Tensor, steps: int, **options: object) -> Tensor:
    return model.generate(
        tokens, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0, **options
    )


@torch.no_grad()
def test_auto_model_loads_the_checkpoint_directory(directory: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True
    )
    assert type(model).__name__ == "MHCGatesForCausalLM"
    assert not any(info.values())
    decoder = load_checkpoint(directory).model
    tokens = random_tokens(3, 40)
    torch.testing.assert_close(model(tokens).logits, decoder(tokens), rtol=0, atol=1e-6)
    # The tables are no part of the weights file: they must be right up to the last position.
    torch.testing.assert_close(model.model.rope_cos, decoder.rope_cos, rtol=0, atol=0)
    torch.testing.assert_close(model.model.rope_sin, decoder.rope_sin, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [None, False, True])
def test_greedy_generation_is_the_decoders(directory: Path, use_cache: bool | None) -> None:
    model = MHCGatesForCausalLM.from_pretrained(directory)
    tokens = random_tokens(2, 9)
    options = {} if use_cache is None else {"use_cache": use_cache}
    expected = greedy(load_checkpoint(directory).model, tokens, 12)
    assert torch.equal(generate(model, tokens, 12, **options), expected)


@torch.no_grad()
def test_bfloat16_keeps_connections_in_float32(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, dtype=torch.bfloat16
    )
    decoder = load_checkpoint(directory, dtype=torch.bfloat16).model
    expected = {name: value.dtype for name, value in decoder.named_parameters()}
    assert {name: value.dtype for name, value in model.model.named_parameters()} == expected
    assert model.model.rope_cos.dtype == torch.float32
    tokens = random_tokens(2, 20)
    assert torch.equal(model(tokens).logits, decoder(tokens))


def test_auto_tokenizer_gives_the_same_ids(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == TOKENIZER.eos_id
    assert len(tokenizer) == TOKENIZER.vocab_size
    texts = ["1234567890", "   a\n\n\n  b\t", "<|bos|> is text", "e\u0301 १२ 🙂🙂", ""]
    for text in CORPUS + texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == TOKENIZER.encode(text)
        assert tokenizer.decode(ids) == text


@torch.no_grad()
def test_gates_steer_each_row(mhc_pair: tuple[Decoder, MHCGatesForCausalLM]) -> None:
    decoder, model = mhc_pair
    tokens = random_tokens(2, 10)
    rows = torch.rand(2, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model(tokens, gates=rows).logits, decoder(tokens, rows))
    assert torch.equal(model(tokens, gates=0.0).logits, decoder(tokens, torch.zeros(2, 6)))
    per_layer = torch.tensor([[0.1, 0.1, 0.5, 0.5, 1.0, 1.0]]).expand(2, -1)
    assert torch.equal(model(tokens, gates=[0.1, 0.5, 1.0]).logits, decoder(tokens, per_layer))
    assert (model(tokens, gates=0.0).logits - model(tokens, gates=1.0).logits).abs().max() > 1e-3
    expected = greedy(decoder, tokens, 8, rows)
    assert torch.equal(generate(model, tokens, 8, gates=rows), expected)
    assert not torch.equal(expected, greedy(decoder, tokens, 8, rows.flip(0)))


@torch.no_grad()
def test_beams_keep_their_rows_gates(mhc_pair: tuple[Decoder, MHCGatesForCausalLM]) -> None:
    _, model = mhc_pair
    tokens, rows = random_tokens(2, 6), torch.stack([torch.zeros(6), torch.ones(6)])
    together = generate(model, tokens, 6, gates=rows, num_beams=3)
    assert not torch.equal(together, generate(model, tokens, 6, gates=rows.flip(0), num_beams=3))
    for i in range(2):
        alone = generate(model, tokens[i : i + 1], 6, gates=rows[i : i + 1], num_beams=3)
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("gates", [1.1, -0.1, float("nan"), [0.5] * 4, "0.5", torch.rand(3, 6)])
def test_bad_gates_are_refused(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM], gates: object
) -> None:
    with pytest.raises(GateError):
        mhc_pair[1](random_tokens(2, 5), gates=gates)


def test_plain_model_refuses_gates() -> None:
    config = build_decoder(None).config
    model = MHCGatesForCausalLM(MHCGatesConfig.from_model_config(config))
    with pytest.raises(GateError, match="plain"):
        model(random_tokens(1, 5), gates=0.5)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM],
) -> None:
    decoder, model = mhc_pair
    tokens = random_tokens(3, 12)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # left
    mask[1, 8:] = 0  # right
    mask[2, :2], mask[2, 11:] = 0, 0  # both
    logits = model(tokens, attention_mask=mask).logits
    for row, kept in enumerate(mask.bool()):
        alone = decoder(tokens[row : row + 1, kept])[0]
        torch.testing.assert_close(logits[row, kept], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padded_prompts_generate_as_alone(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM],
) -> None:
    decoder, model = mhc_pair
    long, short = random_tokens(1, 11, seed=1), random_tokens(1, 4, seed=2)
    tokens = torch.cat([long, torch.cat([torch.zeros(1, 7, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    together = generate(model, tokens, 10, attention_mask=mask)
    assert torch.equal(together[0], greedy(decoder, long, 10)[0])
    assert torch.equal(together[1, 7:], greedy(decoder, short, 10)[0])


def test_what_is_not_supported_is_refused(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM],
) -> None:
    _, model = mhc_pair
    tokens = random_tokens(1, 4)
    with pytest.raises(EngineError, match="zeros between ones"):
        model(tokens, attention_mask=torch.tensor([[1, 0, 1, 1]]))
    with pytest.raises(EngineError, match=r"\(1, 3\).*\(1, 4\)"):
        model(tokens, attention_mask=torch.tensor([[0, 1, 1]]))
    with pytest.raises(EngineError, match="past_key_values"):
        model(tokens, past_key_values=object())
    with pytest.raises(EngineError, match="context of 48"):
        model(random_tokens(1, 49))
    with pytest.raises(EngineError, match="position_ids"):
        generate(model, tokens, 2, position_ids=torch.arange(4)[None])
    with pytest.raises(ValueError, match="inputs_embeds"):
        generate(model, tokens, 2, inputs_embeds=torch.zeros(1, 4, 32))


def test_loss_is_that_of_the_next_token(mhc_pair: tuple[Decoder, MHCGatesForCausalLM]) -> None:
    decoder, model = mhc_pair
    tokens = random_tokens(2, 7)
    labels = tokens.clone()
    labels[0, :4] = -100
    logprobs = decoder(tokens).log_softmax(dim=-1)
    counted = [(0, t) for t in range(4, 7)] + [(1, t) for t in range(1, 7)]
    expected = -torch.stack([logprobs[b, t - 1, tokens[b, t]] for b, t in counted]).mean()
    output = model(tokens, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.model.head.weight.grad.abs().max() > 0
    assert torch.equal(model(tokens, labels=labels, return_dict=False)[1], output.logits)


@torch.no_grad()
def test_save_pretrained_round_trip(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM], tmp_path: Path
) -> None:
    decoder, model = mhc_pair
    model.save_pretrained(tmp_path)
    again = MHCGatesForCausalLM.from_pretrained(tmp_path)
    tokens = random_tokens(1, 10)
    torch.testing.assert_close(again(tokens).logits, decoder(tokens), rtol=0, atol=1e-6)


def test_from_config_starts_as_the_decoder_does() -> None:
    config = ModelConfig(vocab_size=50, n_layers=2, n_heads=2, d_model=8, mhc=MHCConfig())
    model = MHCGatesForCausalLM(MHCGatesConfig.from_model_config(config))
    expected = Decoder(config).state_dict()
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_config_round_trip_and_contradictions() -> None:
    config = ModelConfig(n_layers=2, n_heads=4, d_model=64, mhc=MHCConfig(n_streams=2))
    wrapped = MHCGatesConfig.from_model_config(config)
    assert wrapped.to_model_config() == config
    assert MHCGatesConfig(**json.loads(wrapped.to_json_string())).to_model_config() == config
    assert (wrapped.hidden_size, wrapped.num_hidden_layers) == (64, 2)
    with pytest.raises(ConfigError, match=r"hidden_size is 65.*64"):
        MHCGatesConfig.from_model_config(config, hidden_size=65)
    with pytest.raises(ConfigError, match="n_layer"):
        MHCGatesConfig(mhc_gates={"n_layer": 3})


@torch.no_grad()
@pytest.mark.parametrize("pads", ["none", "left", "right"])
def test_a_cache_gives_what_the_whole_sequence_does(directory: Path, pads: str) -> None:
    model = MHCGatesForCausalLM.from_pretrained(directory)
    tokens = random_tokens(3, 14)
    mask = torch.ones_like(tokens)
    if pads != "none":
        mask[1, : 5 if pads == "left" else 0] = 0
        mask[2, 14 if pads == "left" else 9 :] = 0
    expected = model(tokens, attention_mask=mask).logits
    past, found = None, []
    for first, last in ((0, 6), (6, 7), (7, 14)):
        output = model(
            tokens[:, first:last],
            attention_mask=mask[:, :last],
            past_key_values=past,
            use_cache=True,
        )
        past = output.past_key_values
        found.append(output.logits)
    assert past.get_seq_length() == 14
    kept = mask.bool()
    torch.testing.assert_close(torch.cat(found, 1)[kept], expected[kept], rtol=0, atol=1e-5)
    assert model(tokens).past_key_values is None
    assert model(tokens, use_cache=True, return_dict=False)[1] is not None


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_generation_with_a_cache_is_that_without(
    mhc_pair: tuple[Decoder, MHCGatesForCausalLM], options: dict[str, object]
) -> None:
    _, model = mhc_pair
    tokens, rows = random_tokens(2, 9), torch.rand(2, 6)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    given = {"attention_mask": mask, "gates": rows, "num_beams": options.get("num_beams", 1)}
    expected = generate(model, tokens, 8, use_cache=False, **given)
    assert torch.equal(generate(model, tokens, 8, use_cache=True, **{**given, **options}), expected)


@torch.no_grad()
def test_hidden_states_and_attentions(directory: Path) -> None:
    model = MHCGatesForCausalLM.from_pretrained(directory)
    tokens, decoder = random_tokens(2, 9), model.model
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [x.shape for x in output.hidden_states] == [(2, 9, 32)] * 4
    torch.testing.assert_close(output.logits, decoder(tokens), rtol=0, atol=1e-5)
    last = output.hidden_states[-1]
    torch.testing.assert_close(last, decoder.hidden(tokens), rtol=0, atol=1e-5)
    if decoder.config.mhc is not None:
        for i in (1, 2):
            expected = decoder.hidden_after(tokens, i)
            torch.testing.assert_close(output.hidden_states[i], expected, rtol=1e-4, atol=1e-4)
    assert [a.shape for a in output.attentions] == [(2, 4, 9, 9)] * 3
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9), rtol=0, atol=1e-5)
        assert not weights.triu(1).any()
    plain = model(tokens)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    assert decoder.watch is None
    made = model.generate(
        tokens, max_new_tokens=3, eos_token_id=None, pad_token_id=0, output_hidden_states=True,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert [len(step) for step in made.hidden_states] == [4] * 3
    assert made.attentions[-1][0].shape == (2, 4, 1, 11)


def test_gradient_checkpointing_gives_the_same_gradients(directory: Path) -> None:
    model = MHCGatesForCausalLM.from_pretrained(directory).train()
    tokens = random_tokens(2, 9)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        if enabled:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing is enabled
        assert model.model.gradient_checkpointing is enabled
        output = model(tokens, labels=tokens, output_hidden_states=True)
        (output.loss + output.hidden_states[1].square().mean()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    model.gradient_checkpointing_disable()
    assert not model.model.gradient_checkpointing
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
