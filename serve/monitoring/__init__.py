"""What operators see: every request's record, metrics, a log.

In: HTTP requests on their way, and the engine's load. Out: one `RequestRecord` a request, told to
every `Observer`; Prometheus's text; lines of JSON. May import mhc_model, errors and basics.

    observer.py    `Observer`: what the service tells; `RequestRecord`
    tracing.py     the middleware that gives a request its id and makes its record
    metrics.py     an observer that counts, and the text of all replicas' counts
    access_log.py  an observer that writes a line a request
"""

from serve.monitoring.access_log import AccessLog
from serve.monitoring.metrics import METRICS_CONTENT_TYPE, ReplicaMetrics, exposition
from serve.monitoring.observer import Observer, Observers, RequestRecord
from serve.monitoring.tracing import RequestTrace, Tracing, trace_of

__all__ = [
    "METRICS_CONTENT_TYPE",
    "AccessLog",
    "Observer",
    "Observers",
    "ReplicaMetrics",
    "RequestRecord",
    "RequestTrace",
    "Tracing",
    "exposition",
    "trace_of",
]
