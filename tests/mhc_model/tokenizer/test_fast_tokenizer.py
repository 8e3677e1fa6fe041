"""Tokenizers that come with converted models, and the checkpoints that keep them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, pre_tokenizers, processors
from tokenizers import Tokenizer as Fast
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config

from mhc_model import CheckpointError, Engine, Request, SamplingParams, load_checkpoint
from mhc_model.conversion import convert, export
from mhc_model.errors import DataError
from mhc_model.tokenizer import FastTokenizer, TiktokenTokenizer, Tokenizer

CORPUS = ["Question: Tom has 12 apples and buys 7 more.\nAnswer: 19\n", "naïve 北京 🙂  \n\n\tx"]
TEXTS = [*CORPUS, "1234567890", "   a\n\n\n  b\t", "e\u0301 १२ 🙂🙂", "", "<|im_end|> is text"]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PADDED = 336
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """As Qwen3's: several special tokens, an added one that is not special, no beginning."""
    fast = Fast.from_str(Tokenizer.train(CORPUS, vocab_size=300).files["tokenizer.json"].decode())
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    fast.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": TEMPLATE,
    }
    return {
        "tokenizer.json": fast.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


@pytest.fixture(scope="module")
def tokenizer(files: dict[str, bytes]) -> FastTokenizer:
    return FastTokenizer.from_files(files, PADDED, eos_ids=[])


def named(tokenizer: Tokenizer, name: str) -> int:
    return tokenizer.special_tokens[name]


def test_text_survives_and_no_text_makes_special_tokens(tokenizer: FastTokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_are_those_of_the_file(tokenizer: FastTokenizer, files: dict[str, bytes]) -> None:
    fast = Fast.from_str(files["tokenizer.json"].decode())
    for text in TEXTS[:-1]:
        assert tokenizer.encode(text) == fast.encode(text, add_special_tokens=False).ids


def test_token_bytes(tokenizer: FastTokenizer) -> None:
    assert tokenizer.vocab_size == PADDED
    lengths = tokenizer.token_byte_lengths()
    assert lengths.shape == (PADDED,)
    for text in TEXTS:
        assert int(lengths[tokenizer.encode(text)].sum()) == len(text.encode())
    for special in tokenizer.special_tokens.values():
        assert tokenizer.token_bytes(special) == b""
    think = tokenizer.encode("<think>")
    assert (len(think), tokenizer.decode_bytes(think)) == (1, b"<think>")
    assert tokenizer.token_bytes(PADDED - 1) == b"", "padding"
    with pytest.raises(DataError, match=f"{PADDED}.*0 to {PADDED - 1}"):
        tokenizer.token_bytes(PADDED)


def test_ends_and_beginnings(tokenizer: FastTokenizer, files: dict[str, bytes]) -> None:
    end, other = named(tokenizer, "<|im_end|>"), named(tokenizer, "<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.start_id) == (None, (end,), end)
    assert tokenizer.encode("ab", bos=True) == tokenizer.encode("ab")
    assert tokenizer.encode_documents(["ab"]) == [[*tokenizer.encode("ab"), end]]
    several = FastTokenizer.from_files(files, eos_ids=[other])
    assert several.eos_ids == (other, end)
    with pytest.raises(CheckpointError, match="end-of-text"):
        FastTokenizer.from_files({"tokenizer.json": files["tokenizer.json"]})


@pytest.mark.parametrize("how", ["template", "config"])
def test_a_model_whose_texts_begin_with_a_token(files: dict[str, bytes], how: str) -> None:
    fast = Fast.from_str(files["tokenizer.json"].decode())
    start = fast.token_to_id("<|im_start|>")
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    if how == "template":
        fast.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
        )
    else:
        config["add_bos_token"] = True
    tokenizer = FastTokenizer.from_files(
        {
            "tokenizer.json": fast.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
    assert tokenizer.bos_id == tokenizer.start_id == start
    assert tokenizer.encode("ab", bos=True) == [start, *tokenizer.encode("ab")]
    assert start not in tokenizer.encode("ab")
    assert tokenizer.encode_documents(["ab"])[0][0] == start


def test_a_rendered_conversation(tokenizer: FastTokenizer) -> None:
    ids = tokenizer.encode_marked("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == named(tokenizer, "<|im_start|>")
    assert ids[-1] == tokenizer.eos_id
    assert ids[1:-1] == tokenizer.encode("user\nhi")
    ours = Tokenizer.train(CORPUS, vocab_size=280)
    assert ours.encode_marked("a<|bos|>b") == [*ours.encode("a"), ours.bos_id, *ours.encode("b")]


def test_directories_say_which_kind_they_hold(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "fast")
    loaded = Tokenizer.from_directory(tmp_path / "fast")
    assert isinstance(loaded, FastTokenizer)
    assert loaded.files == tokenizer.files
    assert (loaded.vocab_size, loaded.eos_ids) == (PADDED, tokenizer.eos_ids)
    config = json.loads((tmp_path / "fast" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    Tokenizer.train(CORPUS, vocab_size=280).save(tmp_path / "tiktoken")
    assert isinstance(Tokenizer.from_directory(tmp_path / "tiktoken"), TiktokenTokenizer)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[-1]) == tokenizer.encode(TEXTS[-1])
    assert copy.vocab_size == PADDED


@pytest.mark.parametrize("content", ["", "[]", '{"mhc_gates": 3}', '{"mhc_gates": {}}'])
def test_a_damaged_directory_is_refused(
    tokenizer: FastTokenizer, tmp_path: Path, content: str
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_directory(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def test_other_kinds_are_refused(files: dict[str, bytes]) -> None:
    words = Fast(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match=r"WordLevel.*byte-level BPE"):
        FastTokenizer.from_files({**files, "tokenizer.json": words.to_str().encode()})
    with pytest.raises(CheckpointError, match="the model only 300 ids"):
        FastTokenizer.from_files(files, vocab_size=300)


# A model with its tokenizer


@pytest.fixture(scope="module")
def original(
    theirs: Callable[..., PreTrainedModel],
    files: dict[str, bytes],
    tokenizer: FastTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[PreTrainedModel, Path]:
    """A Qwen3 with a padded vocabulary that ends at two tokens."""
    directory = tmp_path_factory.mktemp("qwen3") / "original"
    values = theirs("qwen3").config.to_dict()
    values |= {"vocab_size": PADDED, "bos_token_id": None, "eos_token_id": None, "dtype": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = [
        named(tokenizer, "<|im_end|>"),
        named(tokenizer, "<|endoftext|>"),
    ]
    model.save_pretrained(directory)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return model, directory


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "mhc"])
def converted(
    request: pytest.FixtureRequest,
    original: tuple[PreTrainedModel, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("converted") / "checkpoint"
    return convert(original[1], path, streams=request.param).path


@pytest.fixture(autouse=True)
def private_module_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.getbasetemp() / "modules"
    cache.mkdir(exist_ok=True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)


@torch.no_grad()
def test_auto_classes_load_the_checkpoint(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        converted, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    rows = torch.randint(PADDED, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = original[0](rows).logits
    assert ((model(rows).logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert model.generation_config.eos_token_id == original[0].generation_config.eos_token_id
    theirs = AutoTokenizer.from_pretrained(converted, trust_remote_code=True)
    ours = load_checkpoint(converted).tokenizer
    assert ours is not None
    for text in TEXTS[:-1]:
        assert theirs(text)["input_ids"] == ours.encode(text)
    chat = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(chat, tokenize=False)
    assert theirs.apply_chat_template(chat)["input_ids"] == ours.encode_marked(rendered)


def test_the_engine_generates_what_transformers_does(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    engine = Engine.from_checkpoint(converted, max_batch=4, device="cpu")
    assert engine.tokenizer is not None
    rows = engine.tokenizer.encode_batch(["Question: Tom", "Answer:", "12 + 7 ="], bos=True)
    sampling = SamplingParams(max_tokens=12)
    plain = engine.model.config.mhc is None
    gates = [None, None, None] if plain else [None, 0.0, [0.1, 0.5, 1.0]]
    requests = [
        Request(row, gates=g, sampling=sampling) for row, g in zip(rows, gates, strict=True)
    ]
    for row, completion in zip(rows, engine.generate(requests), strict=True):
        made = original[0].generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)
        expected = [i for i in made[0, len(row) :].tolist() if i not in engine.tokenizer.eos_ids]
        assert list(completion.tokens) == expected


def test_each_end_stops_the_engine(original: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    """The token that is generated is made an end, first or second of them."""
    checkpoint = convert(original[1], tmp_path / "plain", streams=0)
    tokenizer = checkpoint.tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    row = tokenizer.encode("Question:")
    request = Request(row, sampling=SamplingParams(max_tokens=6))
    [free] = Engine(checkpoint.model).generate([request])
    for ends in ([free.tokens[3], 0], [0, free.tokens[3]]):
        ending = FastTokenizer(tokenizer.files, PADDED, None, ends)
        engine = Engine(checkpoint.model, ending)
        [completion] = engine.generate([request])
        assert completion.tokens == free.tokens[: free.tokens.index(free.tokens[3])]
        assert completion.finish_reason == "stop"


def test_the_hash_covers_the_tokenizer(converted: Path, tmp_path: Path) -> None:
    path = converted / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"<think>", b"<thinK>"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was altered"):
        load_checkpoint(converted)
    path.write_bytes(whole)
    assert load_checkpoint(converted).tokenizer is not None


def test_the_export_keeps_the_tokenizer(
    converted: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    export(converted, tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == TEMPLATE


def test_lm_eval_reads_the_checkpoint(
    original: tuple[PreTrainedModel, Path], converted: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is an optional tool")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    options = {"device": "cpu", "dtype": "float32", "batch_size": 1}
    ours = HFLM(pretrained=str(converted), trust_remote_code=True, **options)
    theirs = HFLM(pretrained=str(original[1]), **options)
    pairs = [("Question: Tom has", " 12 apples"), ("Answer:", " 19")]
    requests = [
        Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)
    ]
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    for (value, greedy), (wanted, their_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-3)
        assert greedy == their_greedy
