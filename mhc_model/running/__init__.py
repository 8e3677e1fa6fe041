"""How a command lives: it says what it does, has a private directory, and ends when it is told.

In: the start of a command of any package. Out: exit statuses and lines for the person or the
platform that started it. May import the standard library and mhc_model.errors, and nothing else: it
comes before everything that takes time to load.

    supervisor.py  the command in a process of its own, which a small one ends on SIGINT and SIGTERM
    progress.py    a line now and then while something takes long
    cluster.py     Ray started or joined, or the reason in one line; its noise left out
"""

from mhc_model.running.cluster import check_address, check_temp_dir, ray_cluster
from mhc_model.running.progress import EVERY_S, Heartbeat, counted, doing, say
from mhc_model.running.supervisor import (
    leave_the_rest,
    on_stop,
    private_directory,
    remove_if_empty,
    scratch_directory,
    stop_signals,
    supervise,
)

__all__ = [
    "EVERY_S",
    "Heartbeat",
    "check_address",
    "check_temp_dir",
    "counted",
    "doing",
    "leave_the_rest",
    "on_stop",
    "private_directory",
    "ray_cluster",
    "remove_if_empty",
    "say",
    "scratch_directory",
    "stop_signals",
    "supervise",
]
