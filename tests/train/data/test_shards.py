"""The loader of prepared shards: what it reads, in which order, and what it refuses."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from mhc_model.decoder import Decoder, describe
from mhc_model.errors import ConfigError, DataError
from mhc_model.settings import differences, load_settings, validate_settings
from mhc_model.tokenizer import Tokenizer
from train.__main__ import main
from train.config import FREE_ON_RESUME, DataConfig, TrainConfig
from train.data import Batches, Corpus, ReadAhead, ShardedTokens, prepare_corpus
from train.launch import with_vocabulary
from train.loop import ProcessGroup, Trainer
from train.prepare import PrepareConfig, prepare
from train.records import RunDirectory

CONFIGS = Path(__file__).parents[3] / "configs"
DOCUMENTS = [
    f"Document {i}: größer, Ж, 漢字 \N{SLOTH}, {i * i} words." * (i % 7 + 1) for i in range(600)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows in several shards. For reading only."""
    directory = tmp_path_factory.mktemp("shards")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (directory / "rows.jsonl").write_text(rows)
    config = PrepareConfig(
        source=(str(directory / "rows.jsonl"),),
        out=str(directory / "out"),
        tokenizer="train",
        vocab_size=400,
        validation_share=0.1,
        part_bytes=40_000,
    )
    assert len(prepare(config).train) >= 3
    return directory / "out"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture(scope="module")
def corpus(prepared: Path) -> Corpus:
    return prepare_corpus(DataConfig(shards=str(prepared)))


def blocks(tokens: ShardedTokens, context: int) -> Iterator[list[int]]:
    """Every block there is, by reading the files whole."""
    for entry in tokens.manifest.train:
        stream = np.fromfile(Path(tokens.path, entry.file), dtype=tokens.dtype).tolist()
        for start in range(0, len(stream) - context, context):
            yield stream[start : start + context + 1]


def epoch_of(batches: Batches | ReadAhead, steps: range, start: int, stop: int) -> list[list[int]]:
    rows = []
    for step in steps:
        inputs, targets = batches.sequences(step, start, stop)
        rows += [
            [*row, target[-1]]
            for row, target in zip(inputs.tolist(), targets.tolist(), strict=True)
        ]
        assert inputs[:, 1:].equal(targets[:, :-1])
    return rows


def test_ranks_are_disjoint_and_complete_in_an_epoch(corpus):
    context, batch = 16, 6
    everything = list(blocks(corpus.tokens, context))
    assert len(everything) == Batches(corpus.tokens, context, batch, seed=1).blocks
    whole = len(everything) // batch
    seen: list[list[int]] = []
    for rank in range(3):
        part = range(2 * rank, 2 * rank + 2)
        ahead = ReadAhead(Batches(corpus.tokens, context, batch, seed=1), part, device_batch=1)
        for step in range(1, whole + 1):
            for start in part:
                seen += epoch_of(ahead, range(step, step + 1), start, start + 1)
        ahead.close()
    batches = Batches(corpus.tokens, context, batch, seed=1)
    left = len(everything) % batch  # the step that ends the epoch takes the next one's beginning
    seen += epoch_of(batches, range(whole + 1, whole + 2), 0, left)
    assert sorted(seen) == sorted(everything)


def test_every_epoch_has_its_own_order_and_every_seed(corpus):
    batches = Batches(corpus.tokens, 16, 6, seed=1)
    count = batches.blocks
    order = np.concatenate([batches.block_ids(step, 0, 6) for step in range(1, 2 + 2 * count // 6)])
    first, second = order[:count], order[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count))
    other = Batches(corpus.tokens, 16, 6, seed=2)
    third = np.concatenate([other.block_ids(step, 0, 6) for step in range(1, 1 + count // 6)])
    for one, two in ((first, second), (first[: len(third)], third), (first, np.arange(count))):
        assert np.mean(one == two) < 0.05


def test_another_number_of_workers_gives_the_same_global_batches(corpus):
    for step in (1, 5, 1 + Batches(corpus.tokens, 16, 12, seed=0).blocks // 12):
        whole = Batches(corpus.tokens, 16, 12, seed=0).sequences(step, 0, 12)[0].tolist()
        for workers in (2, 3, 4):
            own = 12 // workers
            parts = []
            for rank in range(workers):
                part = range(rank * own, (rank + 1) * own)
                # A worker that starts in the middle, as after a resume.
                ahead = ReadAhead(Batches(corpus.tokens, 16, 12, seed=0), part, own)
                parts += ahead.sequences(step, part.start, part.stop)[0].tolist()
                ahead.close()
            assert parts == whole


def test_files_in_memory_and_shards_give_the_same_sequences(corpus):
    stream = np.concatenate(
        [
            np.fromfile(Path(corpus.tokens.path, e.file), np.uint16)
            for e in corpus.tokens.manifest.train[:1]
        ]
    )
    manifest = corpus.tokens.manifest
    one = pickle.loads(pickle.dumps(corpus.tokens))
    one.manifest = manifest.model_copy(update={"train": manifest.train[:1]})
    one.lengths = one.lengths[:1]
    for step in (1, 9):
        from_shards = Batches(one, 16, 8, seed=4).sequences(step, 0, 8)
        from_memory = Batches(stream, 16, 8, seed=4).sequences(step, 0, 8)
        assert from_shards[0].equal(from_memory[0])
        assert from_shards[1].equal(from_memory[1])


def test_held_out_documents_are_texts_again_and_none_is_trained_on(corpus, prepared):
    assert 20 < len(corpus.validation) < 120
    assert corpus.documents + len(corpus.validation) == len(DOCUMENTS)
    assert set(corpus.validation) < set(DOCUMENTS)
    tokens = np.concatenate(
        [np.fromfile(prepared / e.file, np.uint16) for e in corpus.tokens.manifest.train]
    )
    trained = corpus.tokenizer.decode(tokens.tolist())
    assert not any(text in trained for text in corpus.validation)
    few = prepare_corpus(DataConfig(shards=str(prepared), validation_documents=5))
    assert len(few.validation) == 5
    assert set(few.validation) < set(corpus.validation)
    assert few.sha256 != corpus.sha256


def test_a_run_trains_validates_and_resumes_on_shards(prepared, tmp_path, persist_in):
    values = {
        "name": "shards",
        "storage": str(tmp_path),
        "steps": 4,
        "total_batch_tokens": 256,
        "device_batch": 4,
        "checkpoint_every": 2,
        "data": {"shards": str(prepared), "validation_documents": 3},
        "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "max_seq_len": 32, "mhc": None},
        "workers": {"num_workers": 1},
    }

    def trainer(**changes: object) -> Trainer:
        config = validate_settings(TrainConfig, values | changes, "test")
        found = prepare_corpus(config.data)
        config = with_vocabulary(config, found.tokenizer.vocab_size)
        return Trainer(config, found, RunDirectory(config.storage, config.name), ProcessGroup())

    straight = trainer()
    straight.fit(persist_in(straight.run))
    half = trainer(name="half", steps=2, warmdown_share=0.0)
    half.fit(persist_in(half.run))
    straight, half = (
        list(map(json.loads, Path(tmp_path, name, "metrics.jsonl").read_text().splitlines()))
        for name in ("shards", "half")
    )
    assert half[0]["loss"] == straight[0]["loss"]
    fresh = trainer()
    expected = fresh.objective(*fresh.batches.sequences(1, 0, 8)).item()
    assert straight[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert straight[-1]["val_bpb"] > 0
    rest = trainer(name="half", steps=4)
    rest.resume()
    assert rest.step == 2
    batch = rest.batches.sequences(3, 0, 4)[0]
    assert batch.equal(trainer().batches.sequences(3, 0, 4)[0])


def test_shipped_configurations_take_shards(prepared, capsys):
    arguments = ["--config", str(CONFIGS / "mhc_d12.yaml"), "--data.shards", str(prepared)]
    with pytest.raises(SystemExit) as stop:  # the file's own data
        main([*arguments, "--dry-run"])
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--data.files --data.validation-files with nothing behind" in message
    arguments += ["--data.files", "--data.validation-files", "--data.tokenizer", "train"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert f"shards: {prepared}\n" in output
    # Embedding and head have rows for the tokens of the shards, not for those of the file.
    manifest = ShardedTokens(str(prepared)).manifest
    model = load_settings(TrainConfig, CONFIGS / "mhc_d12.yaml").model
    sized = model.model_copy(update={"vocab_size": manifest.vocab_size})
    assert describe(Decoder, sized) in output


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), r"has \d+ bytes, .* says \d+"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), r"has \d+ bytes, .* says \d+"),
        (
            lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]),
            r"is corrupt: its sha256 is",
        ),
    ],
    ids=["missing", "truncated", "longer", "altered"],
)
def test_a_damaged_shard_is_named(copy, split, damage, message):
    damage(copy / f"{split}-00001.bin")
    with pytest.raises(DataError, match=rf"{split}-00001\.bin {message}"):
        prepare_corpus(DataConfig(shards=str(copy)))


def test_hashing_can_be_left_out_but_not_the_sizes(copy):
    path = copy / "train-00001.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    config = DataConfig(shards=str(copy), verify_shards=False)
    prepare_corpus(config)
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"train-00001\.bin has \d+ bytes"):
        prepare_corpus(config)


def test_a_shard_that_is_truncated_while_a_run_reads_it_is_named(copy):
    corpus = prepare_corpus(DataConfig(shards=str(copy)))
    ahead = ReadAhead(Batches(corpus.tokens, 16, 6, seed=0), range(6), 6)
    ahead.sequences(1, 0, 6)
    for path in copy.glob("train-*.bin"):
        with path.open("r+b") as file:
            file.truncate(10)
    with pytest.raises(DataError, match=r"train-\d+\.bin was truncated while it was in use"):
        epoch_of(ahead, range(2, 40), 0, 6)
    ahead.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b'{"format": 1', r"manifest\.json is malformed"),
        ("manifest.json", b'{"format": 2}', r"manifest\.json is malformed.*format is 2"),
        ("manifest.json", None, "is not prepared to the end"),
        ("token_bytes.npy", b"other", r"token_bytes\.npy does not belong"),
        ("tokenizer/tokenizer.tiktoken", b"AA== 0\n", "tokenizer in|tokenizer is not"),
    ],
)
def test_a_damaged_directory_says_what_is_wrong(copy, name, content, message):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(Exception, match=message) as raised:
        prepare_corpus(DataConfig(shards=str(copy)))
    assert type(raised.value).__name__ in ("DataError", "CheckpointError")


def test_what_is_no_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json; write shards with"):
        prepare_corpus(DataConfig(shards=str(tmp_path)))
    with pytest.raises(ConfigError, match="none://x"):
        prepare_corpus(DataConfig(shards="none://x"))


def test_another_tokenizer_than_that_of_the_shards_is_refused(prepared, tmp_path):
    Tokenizer.train(["other text " * 50], 260).save(tmp_path / "other")
    with pytest.raises(DataError, match="another tokenizer than"):
        prepare_corpus(DataConfig(shards=str(prepared), tokenizer=str(tmp_path / "other")))
    prepare_corpus(DataConfig(shards=str(prepared), tokenizer=str(prepared / "tokenizer")))


def test_shards_exclude_other_sources_and_may_move():
    with pytest.raises(
        ConfigError, match=r"beside files and builtin_levels.*--data\.files --data\."
    ):
        validate_settings(
            DataConfig, {"shards": "a", "files": ["x"], "builtin_levels": [1]}, "test"
        )
    config = validate_settings(DataConfig, {"shards": "a"}, "test")
    assert config.shards == str(Path.cwd() / "a")
    base = {"name": "x", "steps": 1, "total_batch_tokens": 2048, "device_batch": 1}
    runs = [
        validate_settings(TrainConfig, {**base, "data": {"shards": place}}, "test")
        for place in ("/a", "s3://bucket/b")
    ]
    assert differences(*(run.model_dump() for run in runs), FREE_ON_RESUME) == []


def test_shards_of_a_bucket_are_copied_once_and_verified(copy, tmp_path):
    bucket = pyarrow.fs.SubTreeFileSystem(str(copy.parent), pyarrow.fs.LocalFileSystem())
    cache = tmp_path / "cache"
    tokens = ShardedTokens("copy", str(cache), bucket)
    local = prepare_corpus(DataConfig(shards=str(copy)))
    assert tokens.sha256 == local.tokens.sha256
    tokenizer = tokens.tokenizer()
    assert tokens.validation_texts(tokenizer, 1000) == local.validation
    far, near = (Batches(each, 16, 6, seed=0) for each in (tokens, local.tokens))
    for step in range(1, 20):
        assert far.sequences(step, 0, 6)[0].equal(near.sequences(step, 0, 6)[0])
    copies = {path: path.stat().st_mtime_ns for path in tokens.directory.glob("*.bin")}
    assert len(copies) == len(tokens.lengths)
    again = ShardedTokens("copy", str(cache), bucket)
    assert {path: path.stat().st_mtime_ns for path in again.directory.glob("*.bin")} == copies

    path = copy / "train-00002.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"train-00002\.bin is corrupt"):
        Batches(ShardedTokens("copy", str(tmp_path / "new"), bucket), 16, 6, 0).sequences(1, 0, 6)


def test_memory_does_not_grow_with_what_is_read(copy):
    """A shard of 1 GiB (a file of holes) is read in random places in a few MiB."""
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["train"][0]
    entry["tokens"] = 2**29
    manifest["train"] = [entry]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with (copy / entry["file"]).open("r+b") as file:
        file.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ahead = ReadAhead(Batches(ShardedTokens(str(copy)), 1024, 16, seed=0), range(16), 16)
    for step in range(1, 200):
        ahead.sequences(step, 0, 16)
    ahead.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
