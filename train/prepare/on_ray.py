"""The parts of a corpus as tasks of Ray Data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from mhc_model.errors import DataError, MHCError
from mhc_model.running import ray_cluster
from train.prepare.config import PrepareConfig
from train.prepare.part import Job
from train.prepare.sources import Part


class RayTasks:
    """Does parts on all CPUs of a machine or a cluster, one task each."""

    def __init__(self, config: PrepareConfig, ray_arguments: Mapping[str, Any]) -> None:
        """Starts nothing yet.

        Args:
            config: how many tasks at once.
            ray_arguments: keyword arguments of `ray.init`.
        """
        self._tasks = config.tasks
        self._arguments = ray_arguments

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Ray within. Whoever calls this has checked what can be, and written nothing."""
        quiet = ray.LoggingConfig(log_level="ERROR")
        with ray_cluster(ray, self._arguments, logging_config=quiet):
            yield

    def __call__(self, job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields records as the parts end.

        Raises:
            DataError: of the first part that failed; those that are finished stay.
        """
        with self.ready():
            _silence()
            rows = [{"number": number, "part": json.dumps(part)} for number, part in parts.items()]
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _write_part,
                fn_kwargs={"job": ray.put(job)},
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=self._tasks),
            )
            for result in results.iter_rows():
                if result["error"] is not None:
                    raise DataError(result["error"])
                yield result["number"], json.loads(result["record"])


def _silence() -> None:
    """Progress is printed here, by tokens; Ray Data would count blocks beside it."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name, level in (("progress", logging.ERROR), ("execution", logging.WARNING)):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(level)


def _write_part(row: dict[str, Any], job: Any) -> dict[str, Any]:
    from train.prepare.sources import Piece

    part = tuple(Piece(*piece) for piece in json.loads(row["part"]))
    found: Job = ray.get(job)
    try:
        record, error = json.dumps(found.write_part(row["number"], part)), None
    # Results, too: Ray would wrap them in a stack of its own.
    except MHCError as problem:
        record, error = None, str(problem)
    except OSError as problem:
        record, error = None, f"part {row['number']} of {found.location}: {problem}"
    return {"number": row["number"], "record": record, "error": error}
