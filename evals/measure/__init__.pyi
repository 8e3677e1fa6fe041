from .latency import Load, measure_latency
from .machine import machine_facts, package_versions
from .memory import MemorySettings, measure_memory
from .sinkhorn import projection_errors, with_iterations

__all__ = [
    "Load",
    "MemorySettings",
    "machine_facts",
    "measure_latency",
    "measure_memory",
    "package_versions",
    "projection_errors",
    "with_iterations",
]
