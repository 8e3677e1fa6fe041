"""What the streams do while a model runs: figures for logs, reports and terminals.

In: a decoder, and what it reads meanwhile. Out: distances, similarities, errors and gains, for each
sublayer or each token. May import the ground, streams, decoder and checkpoint.

    figures.py  `watch_routing` gathers over forward passes, `prompt_routing` token by token
    ascii.py    shades, bars and curves for a terminal
    report.py   a checkpoint's figures in words, which `python -m mhc_model inspect` prints
"""

from mhc_model.decoder import watching
from mhc_model.routing.ascii import bars, heatmap, plot
from mhc_model.routing.figures import (
    PromptRouting,
    Routing,
    SublayerRouting,
    TokenRouting,
    prompt_routing,
    token_routing,
    watch_routing,
)
from mhc_model.routing.report import inspect_checkpoint

__all__ = [
    "PromptRouting",
    "Routing",
    "SublayerRouting",
    "TokenRouting",
    "bars",
    "heatmap",
    "inspect_checkpoint",
    "plot",
    "prompt_routing",
    "token_routing",
    "watch_routing",
    "watching",
]
