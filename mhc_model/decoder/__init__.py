"""Token ids and gates to logits.

In: token ids (b, t), gates (b, 2L) or None, perhaps a cache. Out: logits (b, t, v). May import the
ground (config, errors, gates) and streams.

    decoder.py  `Decoder`: the whole model, plain or with streams; `watching` looks into it
    gated.py    its gates: learned, set in their place, those of a batch
    layers.py   one layer: attention, mlp, norms, rotary positions
    cache.py    `KVCache`: keys and values of rows
    crossing.py  from one sublayer to the next, with hooks or without
    size.py     parameters and FLOPs
"""

from mhc_model.decoder.cache import KVCache
from mhc_model.decoder.decoder import Decoder, Watch, quiet_about_mixing, watching
from mhc_model.decoder.layers import Attend, Attention, rope_table
from mhc_model.decoder.size import describe

__all__ = [
    "Attend",
    "Attention",
    "Decoder",
    "KVCache",
    "Watch",
    "describe",
    "quiet_about_mixing",
    "rope_table",
    "watching",
]
