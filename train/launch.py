"""The driver: prepares the data, starts or joins Ray, and has Ray Train run the workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import yaml

from mhc_model.checkpoint import find_checkpoint, read_model_config
from mhc_model.config import Behaviour, ModelConfig, check_behaviours
from mhc_model.errors import ConfigError, MHCError
from mhc_model.files import locked_directory
from mhc_model.running import Heartbeat, doing, on_stop, ray_cluster, say
from mhc_model.settings import check_same_settings, to_yaml, validate_settings
from train.config import FREE_ON_RESUME, TrainConfig
from train.data import (
    AnswerCorpus,
    Corpus,
    check_groups,
    left_out,
    prepare_answers,
    prepare_corpus,
)
from train.loop import check_samples, make_batches
from train.records import RunDirectory, find_resume, import_tracker
from train.worker import failure_file, train_worker

# Ray Train's own list of checkpoints. It refuses to start where the list and the directory differ,
# for example after a kill in the middle of a save. Which checkpoint is whole is decided by reading
# them (train.records.checkpoints), so every start begins with a fresh list.
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"

# Defaults that the user's environment overrides.
RAY_ENVIRONMENT = {
    # Ray Train looks after its workers this often, and every checkpoint waits for a look.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Otherwise a worker's print also becomes a log message, and every line is shown twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
PRIVATE_ENVIRONMENT = {
    # A cluster of one machine has no other to move to.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A private cluster has no dashboard. One of Ray Train's helpers asks for it every second, and
    # would look for it among all the clusters of the machine; nothing listens on this port.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
}


def launch(config: TrainConfig, ray_arguments: Mapping[str, Any]) -> None:
    """Trains `config.name` to its last step, from its newest checkpoint if it has one.

    Args:
        config: of the run.
        ray_arguments: keyword arguments of `ray.init`.

    Raises:
        MHCError: if the configuration, the data or the run directory do not allow it, if a worker
            raised it, or if workers failed more often than workers.max_failures.
    """
    config = with_start(config)
    prepare = prepare_answers if config.loss_on == "answers" else prepare_corpus
    with doing("reading and tokenizing the data"):
        corpus: Corpus = prepare(config.data, known_behaviours(config))
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    config = with_behaviours(config, corpus)
    _check_start(config, corpus)
    run = RunDirectory(config.storage, config.name)
    with only_driver(run):
        _train(run, config, corpus, ray_arguments)


@contextmanager
def only_driver(run: RunDirectory) -> Iterator[None]:
    """Holds the run's lock; a bucket has none.

    Raises:
        ConfigError: if another process trains the run, or its directory cannot be written.
    """
    if not run.is_local:
        yield
        return
    taken = (
        f"another process trains the run in {run.location}: wait for its end, or give another name"
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_directory(Path(run.path), taken))
        except OSError as error:
            raise ConfigError(f"storage {run.location} cannot be written: {error}") from None
        yield


def _train(
    run: RunDirectory, config: TrainConfig, corpus: Corpus, ray_arguments: Mapping[str, Any]
) -> None:
    check_same_run(run, config, corpus)
    print(
        f"run {config.name} in {run.location}: {len(corpus.tokens):,} training tokens of "
        f"{corpus.documents:,} documents, {len(corpus.validation)} held-out documents, "
        f"{corpus.tokenizer.vocab_size} token ids",
        flush=True,
    )
    for group, rows, _ in corpus.groups:
        if isinstance(group, str):
            print(f"behaviour {group}: {rows / corpus.documents:.1%} of the training rows")
    if numbers := sum(rows for group, rows, _ in corpus.groups if not isinstance(group, str)):
        print(f"gates of their own: {numbers / corpus.documents:.1%} of the training rows")
    found = find_resume(run)
    if found is not None and found.step >= config.steps:
        print(f"run {config.name} is complete at step {found.step}: {run.location}", flush=True)
        return
    if found is not None:
        print(f"resuming after step {found.step}", flush=True)
    take_failures(run, config.workers.num_workers)  # of an earlier start

    def begin() -> None:
        run.write_text("config.yaml", to_yaml(config))
        run.write_text("data.json", json.dumps(corpus.describe(), indent=2) + "\n")
        run.delete_file(RAY_SNAPSHOT)
        on_stop(
            f"nothing is saved now; the same command goes on from the newest checkpoint in "
            f"{run.location} (one is saved every {config.checkpoint_every} steps), or begins again "
            f"if there is none"
        )

    try:
        result = fit(config, corpus, ray_arguments, begin)
    except ray.train.TrainingFailedError as error:
        failures = take_failures(run, config.workers.num_workers) or [str(error)]
        raise MHCError(failures[0]) from error
    if failures := take_failures(run, config.workers.num_workers):
        raise MHCError(failures[0])
    # Said again here: the last lines of the workers can get lost when Ray shuts down.
    print(
        f"run {config.name} is complete at step {config.steps}, held-out loss "
        f"{result['val_loss']:.4f}, bits per byte {result['val_bpb']:.4f}: {run.location}",
        flush=True,
    )


def take_failures(run: RunDirectory, workers: int) -> list[str]:
    """What workers said of errors that starting them again does not help; it is deleted."""
    files = [failure_file(rank) for rank in range(workers)]
    texts = [run.read_text(file) for file in files]
    for file in files:
        run.delete_file(file)
    return [text for text in texts if text is not None]


def _check_start(config: TrainConfig, corpus: Corpus) -> None:
    """Refuses what cannot work before anything is written or started."""
    make_batches(config, corpus)
    if isinstance(corpus, AnswerCorpus):
        for kind, examples in (("training", corpus.training), ("held-out", corpus.held_out)):
            if count := left_out(examples, config.context):
                print(
                    f"{count} of {len(examples.ends)} {kind} examples are longer than sequences of "
                    f"{config.context} tokens and are left out",
                    flush=True,
                )
    check_samples(config.samples, corpus.tokenizer, config.model.max_seq_len)
    for name in ("wandb", "mlflow"):
        if getattr(config.trackers, name):
            import_tracker(name)


def with_start(config: TrainConfig) -> TrainConfig:
    """The configuration with the model and the tokenizer that `init_from` brings.

    Raises:
        CheckpointError: if there is no checkpoint.
        ConfigError: if other fields contradict it.
    """
    if config.init_from is None:
        return config
    model = read_model_config(find_checkpoint(config.init_from))
    # What a run resolved has its further behaviours there.
    # and its vocabulary is that of its tokenizer: the same file made the model and goes on with it.
    own = {"behaviours": model.behaviours, "vocab_size": model.vocab_size}
    given = config.model.model_copy(update=own)
    if given not in (ModelConfig().model_copy(update=own), model):
        raise ConfigError("init_from brings its own model: leave out the fields of model")
    if config.context > model.max_seq_len:
        raise ConfigError(
            f"sequence_length is {config.context}; the context of {config.init_from} is "
            f"{model.max_seq_len}"
        )
    if config.trained == "mhc" and model.mhc is None:
        raise ConfigError(f"trained is 'mhc', but {config.init_from} is plain: convert it first")
    data = config.data
    if data.tokenizer == "train":
        data = data.model_copy(update={"tokenizer": config.init_from})
    return config.model_copy(update={"model": model, "data": data})


def with_vocabulary(config: TrainConfig, vocab_size: int) -> TrainConfig:
    """The configuration with the model's vocabulary as the tokenizer has it.

    Raises:
        ConfigError: if the model of `init_from` has another vocabulary.
    """
    if config.init_from is not None and vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {config.data.tokenizer} has {vocab_size} ids, the model in "
            f"{config.init_from} {config.model.vocab_size}; use the model's tokenizer"
        )
    model = config.model.model_copy(update={"vocab_size": vocab_size})
    return config.model_copy(update={"model": model})


def known_behaviours(config: TrainConfig) -> dict[str, Behaviour]:
    """Those of the model, with those of the configuration added or in their place.

    Raises:
        ConfigError: if the model of `init_from` cannot have them.
    """
    known = {**config.model.behaviours, **config.behaviours}
    if config.init_from is not None and config.model.gateless and known:
        if config.data.style_words:
            return known
        raise ConfigError(
            f"behaviours are {', '.join(known)}, but {config.init_from} is "
            f"{config.model.gateless} and has no gates: convert it first, or set data.style_words"
        )
    try:
        check_behaviours(known, config.model.n_layers)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return known


def with_behaviours(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The configuration whose model knows what its rows are trained under, and what share has it.

    Those of `init_from` stay; where the configuration gives other gates, they count.

    Raises:
        ConfigError: if the model cannot have these behaviours.
        DataError: if a row has an unknown one, or gates that do not fit the model.
    """
    known = known_behaviours(config)
    if not config.data.style_words:
        rows = {group: rows for group, rows, _ in corpus.groups}
        for name, behaviour in known.items():
            before = config.model.behaviours.get(name)
            measured = name in rows or before is None
            share = rows.get(name, 0) / corpus.documents if measured else before.share
            known[name] = behaviour.model_copy(update={"share": share})
            if before is not None and before.gates != behaviour.gates:
                print(
                    f"behaviour {name} has gates {before.gates} in the model; those of the "
                    f"configuration replace them: {behaviour.gates}",
                    flush=True,
                )
            if not share:
                print(f"behaviour {name} is declared, but no training row has it", flush=True)
        model = config.model.model_copy(update={"behaviours": known})
        config = config.model_copy(update={"model": model})
    check_groups(corpus.groups, config.model)
    return config


def check_same_run(run: RunDirectory, config: TrainConfig, corpus: Corpus) -> None:
    """Refuses to go on with a run that was started with other settings or other data.

    Raises:
        ConfigError: naming the fields that differ.
    """
    saved, data = run.read_text("config.yaml"), run.read_text("data.json")
    if saved is None or data is None:
        if run.steps():
            raise ConfigError(
                f"{run.location} has checkpoints but no config.yaml and data.json; give another "
                f"name, or delete the directory"
            )
        return
    before = validate_settings(TrainConfig, yaml.safe_load(saved), f"{run.location}/config.yaml")
    what = f"run {config.name} exists in {run.location}"
    check_same_settings(before, config, FREE_ON_RESUME, what)
    if json.loads(data)["sha256"] != corpus.sha256:
        raise ConfigError(
            f"{what} with other content of the data or of the tokenizer; give another name, or "
            f"delete the directory"
        )


def fit(
    config: TrainConfig,
    corpus: Corpus,
    ray_arguments: Mapping[str, Any],
    begin: Callable[[], None],
) -> dict[str, Any]:
    """Runs the workers to the end, after `begin` once Ray is there; gives the last metrics."""
    is_private = ray_arguments["address"] == "local"
    for name, value in (RAY_ENVIRONMENT | (PRIVATE_ENVIRONMENT if is_private else {})).items():
        os.environ.setdefault(name, value)
    workers = config.workers
    # Of Ray's own messages only errors; Ray Train's warnings, as of dead workers, are not affected.
    quiet = ray.LoggingConfig(log_level="ERROR")
    with ray_cluster(ray, ray_arguments, logging_config=quiet):
        if is_private:
            _check_resources(config)
        begin()
        say(f"starting {workers.num_workers} workers ...")
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"config": config, "corpus": ray.put(corpus)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.use_gpu,
                resources_per_worker={
                    "CPU": workers.cpus_per_worker,
                    **({"GPU": 1} if workers.use_gpu else {}),
                },
            ),
            run_config=ray.train.RunConfig(
                name=config.name,
                storage_path=config.storage,
                failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )
        # The workers say what they do; before they do, and when one is replaced, nobody else does.
        with Heartbeat("waiting for the workers"):
            return trainer.fit().metrics or {}


def _check_resources(config: TrainConfig) -> None:
    """A cluster of one machine never grows: what it lacks would be waited for endlessly."""
    workers, resources = config.workers, ray.cluster_resources()
    needed = {"CPU": workers.num_workers * workers.cpus_per_worker}
    if workers.use_gpu:
        needed["GPU"] = workers.num_workers
    for kind, amount in needed.items():
        if resources.get(kind, 0.0) < amount:
            raise ConfigError(
                f"{workers.num_workers} workers need {amount:g} {kind}s, this machine has "
                f"{resources.get(kind, 0.0):g}; lower workers.num_workers"
                + (" or workers.cpus_per_worker, or raise ray.num_cpus" if kind == "CPU" else "")
            )
