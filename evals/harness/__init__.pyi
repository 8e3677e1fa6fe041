from .command import local_task, run
from .model import GatedLM
from .settings import HarnessSettings

__all__ = ["GatedLM", "HarnessSettings", "local_task", "run"]
