"""Two processes train one model: same parameters on both, same losses as one process."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from train.config import TrainConfig
from train.data import Corpus
from train.loop import ProcessGroup, Trainer
from train.records import RunDirectory

STEPS = 5


def work(rank: int, config: TrainConfig, corpus: Corpus, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=2)
    run = RunDirectory(config.storage, config.name)
    trainer = Trainer(config, corpus, run, ProcessGroup(rank, 2))
    rows = [trainer.train_step() for _ in range(STEPS)]
    rows.append(trainer.evaluate())
    save_file(trainer.decoder.state_dict(), f"{directory}/{rank}.safetensors")
    Path(directory, f"{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(
    make_config, make_trainer, tiny_corpus, tmp_path
):
    # Two passes a step on each process: gradients are exchanged at the last one only.
    config = make_config(device_batch=4)
    torch.multiprocessing.spawn(work, (config, tiny_corpus, str(tmp_path)), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in first.items():
        assert value.equal(second[name]), name

    alone = make_trainer(config)
    start = alone.decoder.gate_logits.detach().clone()
    rows = [alone.train_step() for _ in range(STEPS)]
    rows.append(alone.evaluate())
    assert not first["gate_logits"].equal(start)
    for rank in range(2):
        for one, two in zip(rows, json.loads((tmp_path / f"{rank}.json").read_text()), strict=True):
            for key in set(one) & {"loss", "val_loss", "val_bpb", "val_loss_gate_0", "h_res_drift"}:
                assert two[key] == pytest.approx(one[key], abs=1e-4), key
