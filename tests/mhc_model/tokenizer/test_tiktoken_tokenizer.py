import base64
import gzip
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model.errors import CheckpointError, ConfigError, DataError
from mhc_model.tokenizer import TiktokenTokenizer, Tokenizer
from mhc_model.tokenizer.tiktoken_tokenizer import DIGITS_PATTERN, MAX_WHITESPACE_RUN

CORPUS = [
    "Question: Tom has 12 apples and buys 7 more. How many apples has he?\nAnswer: 19\n",
    "It's the naïve café's 3rd visit;   he'll say “no” — 北京 北京 🙂🙂\r\n\t\tindented\n\n\n",
    "aaaa aaaaaaa abababab  babab xyxyxyx ....... !!!! ==== 1000000",
] * 4

# Where splitting and merging go wrong: digits, runs of blanks, contractions, odd scripts, specials.
PIECES = (
    "12|7| |  |\n|\r\n|\t|'s|'LL|é|e\u0301|北京|🙂|ſ|\u2028|apples|abab|aaaaa|....|\x00|\u00a0|Ⅷ|१२"
)
pieces = st.sampled_from([*PIECES.split("|"), "<|bos|>", "<|endoftext|>"])
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=20).map("".join))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=400)


@pytest.fixture(scope="module")
def gpt2_file() -> Path:
    default = Path(__file__).parents[4] / "shared" / "data"
    path = Path(os.environ.get("MHC_SHARED_DATA", default)) / "gpt2-bpe" / "gpt2.tiktoken"
    if not path.exists():
        pytest.skip(f"GPT-2's vocabulary is not at {path}; set MHC_SHARED_DATA")
    return path


@pytest.fixture(scope="module")
def gpt2(gpt2_file: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken_file(gpt2_file)


def load_fast(tokenizer: Tokenizer, directory: Path) -> tokenizers.Tokenizer:
    tokenizer.save(directory)
    fast = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.encode_special_tokens = True  # what split_special_tokens of tokenizer_config.json means
    return fast


@pytest.fixture(scope="module")
def fast(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return load_fast(trained, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def fast_gpt2(gpt2: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return load_fast(gpt2, tmp_path_factory.mktemp("gpt2"))


@given(text=texts)
@settings(deadline=None, max_examples=300)
def test_any_text_survives_and_tokenizer_json_agrees(
    trained: Tokenizer, fast: tokenizers.Tokenizer, text: str
) -> None:
    ids = trained.encode(text)
    assert trained.bos_id not in ids
    assert trained.decode(ids) == text
    assert b"".join(trained.token_bytes(i) for i in ids) == trained.decode_bytes(ids)
    assert fast.encode(text).ids == ids
    assert fast.decode(ids) == text


@given(text=texts)
@settings(deadline=None, max_examples=200)
def test_gpt2_text_survives_and_tokenizer_json_agrees(
    gpt2: Tokenizer, fast_gpt2: tokenizers.Tokenizer, text: str
) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert fast_gpt2.encode(text).ids == ids


def test_gpt2_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.vocab_size == 50257
    assert gpt2.bos_id == gpt2.eos_id == 50256
    assert gpt2.encode("Hello world", bos=True) == [50256, 15496, 995]


def test_gpt2_merges_are_the_published_ones(
    fast_gpt2: tokenizers.Tokenizer, gpt2_file: Path
) -> None:
    published = gzip.decompress(gpt2_file.with_name("vocab.bpe.gz").read_bytes()).decode()
    merges = json.loads(fast_gpt2.to_str())["model"]["merges"]
    assert [" ".join(pair) for pair in merges] == published.split("\n")[1:-1]


def test_vocabularies_that_no_training_made(tmp_path: Path) -> None:
    """A token that no merge reaches, and one whose part has a higher rank than it."""
    extra = [b"qrs", b"abc", b"ab", b"cab"]
    ranks = {bytes([i]): i for i in range(256)} | {t: 256 + i for i, t in enumerate(extra)}
    tokenizer = TiktokenTokenizer(ranks, DIGITS_PATTERN, "<|bos|>")
    fast = load_fast(tokenizer, tmp_path)
    for text in ["qrs", "xqrs", "abc", "xabc", "abcab", "cabcabab", "abcabcqrs qrs"]:
        assert fast.encode(text).ids == tokenizer.encode(text)
    assert tokenizer.encode("qrs") == [256]
    assert tokenizer.encode("abc") == [257]


def test_special_names_in_text_are_text(trained: Tokenizer, gpt2: Tokenizer) -> None:
    for tokenizer in (trained, gpt2):
        ids = tokenizer.encode(f"a{tokenizer.special}b")
        assert tokenizer.bos_id not in ids
        assert tokenizer.decode(ids) == f"a{tokenizer.special}b"


def test_every_digit_is_one_token(trained: Tokenizer) -> None:
    assert [trained.token_bytes(i) for i in trained.encode("1000000")] == [b"1"] + [b"0"] * 6
    multi = [i for i in range(256, trained.bos_id) if len(trained.token_bytes(i)) > 1]
    assert multi
    assert not any(chr(byte).isdigit() for i in multi for byte in trained.token_bytes(i))


def test_training_reaches_the_size_or_tells_the_true_one() -> None:
    assert Tokenizer.train(CORPUS, vocab_size=300).vocab_size == 300
    assert Tokenizer.train(iter(["ab ab"]), vocab_size=300).vocab_size < 300
    assert Tokenizer.train([], vocab_size=257).vocab_size == 257
    with pytest.raises(ConfigError, match=r"256.*257"):
        Tokenizer.train(CORPUS, vocab_size=256)


def test_lone_surrogates_become_replacement_characters() -> None:
    tokenizer = Tokenizer.train(["a\ud800b", "plain"], vocab_size=300)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_batch_equals_one_by_one(trained: Tokenizer) -> None:
    assert trained.encode_batch(CORPUS) == [trained.encode(text) for text in CORPUS]
    assert trained.encode_batch(CORPUS, bos=True)[0] == trained.encode(CORPUS[0], bos=True)
    assert trained.encode_batch([]) == []


def test_special_token_gives_no_bytes(trained: Tokenizer) -> None:
    assert trained.token_bytes(trained.eos_id) == b""
    assert trained.decode(trained.encode("ab", bos=True)) == "ab"
    lengths = trained.token_byte_lengths()
    assert lengths.shape == (trained.vocab_size,)
    assert lengths[trained.eos_id] == 0
    text = "".join(CORPUS)
    assert int(lengths[trained.encode(text)].sum()) == len(text.encode())


def test_half_a_character_is_replaced(trained: Tokenizer) -> None:
    first = next(i for i in range(256) if trained.token_bytes(i) == "é".encode()[:1])
    assert trained.decode([first]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 10**6])
def test_unknown_id_is_refused(trained: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match=f"{token}.*0 to {trained.bos_id}"):
        trained.decode([0, token])


def test_endless_whitespace_is_refused_and_the_limit_works(trained: Tokenizer) -> None:
    longest = " " * MAX_WHITESPACE_RUN
    assert trained.decode(trained.encode(f"a{longest}b")) == f"a{longest}b"
    with pytest.raises(DataError, match=f"{MAX_WHITESPACE_RUN}.*character 1"):
        trained.encode(f"a {longest}b")
    with pytest.raises(DataError, match="whitespace"):
        trained.encode_batch(["fine", longest + "\n"])


def test_directory_round_trip(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    text = "".join(CORPUS)
    assert loaded.encode(text, bos=True) == trained.encode(text, bos=True)
    assert (loaded.vocab_size, loaded.pattern) == (trained.vocab_size, trained.pattern)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before


def test_pickle_round_trip(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    data = pickle.dumps(trained)
    assert b"tokenizer.json" not in data  # the cached files stay here
    assert pickle.loads(data).encode(CORPUS[1]) == trained.encode(CORPUS[1])


@pytest.mark.parametrize("name", ["tokenizer.tiktoken", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "no base64 here", '{"mhc_gates": 3}'])
def test_damaged_directory_is_refused(
    trained: Tokenizer, tmp_path: Path, name: str, content: str | None
) -> None:
    trained.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name if content != "" else "token"):
        Tokenizer.from_directory(tmp_path)


def rank_lines() -> list[str]:
    return [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]


@pytest.mark.parametrize(
    ("line", "message"),
    [("not-base64! 256", "line 257"), ("YWI=", "line 257"), ("YWI= x", "line 257"),
     ("YQ== 256", "line 257 repeats"), ("YWI= 300", "ranks"), (" 3", "line 257")],
)  # fmt: skip
def test_malformed_rank_file(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.tiktoken"
    path.write_text("\n".join([*rank_lines(), line]))
    with pytest.raises(DataError, match=message):
        Tokenizer.from_tiktoken_file(path)


def test_unusable_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Tokenizer.from_tiktoken_file(tmp_path / "nowhere.tiktoken")
    path = tmp_path / "cut.tiktoken.gz"
    path.write_bytes(gzip.compress("\n".join(rank_lines()).encode())[:-20])
    with pytest.raises(DataError, match=r"cut\.tiktoken\.gz"):
        Tokenizer.from_tiktoken_file(path)
    with pytest.raises(DataError, match="lacks 1 of the 256 single bytes"):
        TiktokenTokenizer({bytes([i]): i for i in range(255)}, DIGITS_PATTERN, "<|bos|>")
    with pytest.raises(DataError, match="regular expression"):
        TiktokenTokenizer({bytes([i]): i for i in range(256)}, "(", "<|bos|>")


def test_gz_equals_plain(tmp_path: Path) -> None:
    content = "\n".join([*rank_lines(), "YWI= 256"]).encode()
    (tmp_path / "a.tiktoken").write_bytes(content)
    (tmp_path / "a.tiktoken.gz").write_bytes(gzip.compress(content))
    for name in ("a.tiktoken", "a.tiktoken.gz"):
        assert Tokenizer.from_tiktoken_file(tmp_path / name).encode("abc") == [256, 99]


def test_from_name_reads_tiktokens_cache(
    gpt2_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken.registry

    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
    for name in ("vocab.bpe", "encoder.json"):
        key = hashlib.sha1(f"{base}/{name}".encode()).hexdigest()
        content = gzip.decompress(gpt2_file.with_name(f"{name}.gz").read_bytes())
        (tmp_path / key).write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    named = Tokenizer.from_name("gpt2")
    assert named.encode("Hello world 1234\n\n  x") == Tokenizer.from_tiktoken_file(
        gpt2_file
    ).encode("Hello world 1234\n\n  x")


def test_from_name_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken.registry

    tiktoken.registry.ENCODINGS.pop("gpt2", None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DataError, match="from_tiktoken_file"):
        Tokenizer.from_name("gpt2")
    with pytest.raises(ConfigError, match="'gpt2'"):
        Tokenizer.from_name("gpt3")


def test_config_is_what_transformers_reads(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == config["eos_token"] == "<|bos|>"
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.token_to_id("<|bos|>") == trained.bos_id
    assert fast.get_vocab_size() == trained.vocab_size
