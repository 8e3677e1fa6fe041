"""How `make test` deals the tests out to its processes: file by file.

What a file's tests share is then made once. All files on the shared Ray cluster (ray_head.py) count
as one, so that there is one cluster.
"""

from __future__ import annotations

from ray_head import on_shared_cluster
from xdist.scheduler import LoadFileScheduling


class FileScheduling(LoadFileScheduling):
    """A process takes the next file once it has ended its own."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "ray_head" if on_shared_cluster(path) else path
