"""Ranks and one special token: training, ids, bytes, and files that are refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import pickle
from pathlib import Path

import pytest
from tokenizer_cases import CORPUS

from mhc_model.errors import ConfigError, DataError
from mhc_model.tokenizer import TiktokenTokenizer, Tokenizer
from mhc_model.tokenizer.tiktoken_tokenizer import DIGITS_PATTERN, MAX_WHITESPACE_RUN


def test_gpt2_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.vocab_size == 50257
    assert gpt2.bos_id == gpt2.eos_id == 50256
    assert gpt2.encode("Hello world", bos=True) == [50256, 15496, 995]


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


def test_pickle_round_trip(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    data = pickle.dumps(trained)
    assert b"tokenizer.json" not in data  # the cached files stay here
    assert pickle.loads(data).encode(CORPUS[1]) == trained.encode(CORPUS[1])


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
