from .config import PrepareConfig
from .on_ray import RayTasks
from .part import Job
from .run import one_after_another, prepare
from .sources import CorpusSource, Part, Piece, open_source

__all__ = [
    "CorpusSource",
    "Job",
    "Part",
    "Piece",
    "PrepareConfig",
    "RayTasks",
    "one_after_another",
    "open_source",
    "prepare",
]
