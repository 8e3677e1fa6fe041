"""A tiny checkpoint with a tokenizer, who asks it, and a private Ray cluster for modules that ask
for one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import arguments_for
from vllm_engines import ENGINES

from evals.problems import load_problems
from evals.tasks import document
from mhc_model import save_checkpoint
from mhc_model.settings import RaySettings
from mhc_model.tokenizer import Tokenizer

# Modules whose tests run over both engines.
BOTH_ENGINES = {"test_pool", "test_rl_config", "test_rl_setup", "test_tuning_run"}

# Before any test module imports Ray, which reads the authentication mode then.
RaySettings().init_arguments()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_kind" in metafunc.fixturenames and metafunc.module.__name__ in BOTH_ENGINES:
        metafunc.parametrize("engine_kind", ENGINES, indirect=True, scope="session")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([document(p) for p in load_problems("builtin:1", "train", 300)], 300)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """An mHC checkpoint of 2 layers of width 32 whose gates change its output."""
    directory = tmp_path_factory.mktemp("rl") / "model"
    model = tiny_model(vocab_size=tokenizer.vocab_size, n_layers=2, max_seq_len=128)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="session")
def named_checkpoint(tmp_path_factory, checkpoint) -> Path:
    """The same model, with two behaviours."""
    from mhc_model import load_checkpoint
    from mhc_model.config import Behaviour

    loaded = load_checkpoint(checkpoint)
    behaviours = {
        "direct": Behaviour(gates=(0.0, 0.3)),
        "worked": Behaviour(gates=((0.7, 1.0), (0.4, 0.6))),
    }
    loaded.model.config = loaded.model.config.model_copy(update={"behaviours": behaviours})
    directory = tmp_path_factory.mktemp("named") / "model"
    save_checkpoint(directory, loaded.model, loaded.tokenizer)
    return directory


@pytest.fixture(scope="session")
def named_engine(named_checkpoint):
    """An engine with that model."""
    from mhc_model import Engine

    return Engine.from_checkpoint(named_checkpoint, device="cpu")


@pytest.fixture
def short_directory() -> Iterator[str]:
    """Ray's socket paths must be short, and pytest's own directories are not."""
    directory = tempfile.mkdtemp(prefix="r-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster(ray_head) -> Iterator[None]:
    """This process is connected to the shared cluster."""
    import ray

    ray.init(**RaySettings(address=ray_head.address).init_arguments())
    yield
    ray.shutdown()


@pytest.fixture
def asker(checkpoint):
    """Of an engine in the place of a pool, which counts its calls."""
    from local_pools import CountingPool

    from mhc_model import Engine
    from rl.config import RLConfig
    from rl.rollouts import Asker

    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    config = RLConfig(name="t", checkpoint=str(checkpoint), max_tokens=6)
    return Asker(CountingPool(engine), engine.tokenizer, config)


@pytest.fixture
def arguments(checkpoint, tmp_path, short_directory, engine_kind) -> list[str]:
    return arguments_for(checkpoint, tmp_path, short_directory, engine_kind)
