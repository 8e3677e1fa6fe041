"""The table `pair`: forward and backward of an attention and an mlp sublayer, and their counts."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from benchmarks.contestants import Pairs, forward_backward
from benchmarks.counting import DispatchCount, count_kernels, saved_bytes
from benchmarks.gpu_kernels import moves_by_triton
from benchmarks.timing import interleave, print_times, summarize


def measure_pair(options: argparse.Namespace) -> dict[str, Any]:
    pairs = Pairs(options)
    contestants = pairs.build_all()
    functions = {each.name: (lambda each=each: forward_backward(each)) for each in contestants}
    rows = summarize(interleave(functions, options.rounds, pairs.device))
    if pairs.device.type == "cuda":
        for row in rows:
            row["triton_streams"] = moves_by_triton(functions[row["name"]])
    print(f"\npair: forward + backward of attention + mlp, {options.rounds} rounds")
    print_times(rows)
    counts = [
        count_sublayer(pairs, each.name)
        for each in contestants
        if not each.name.endswith("-compiled")
    ]
    print("\nforward of one sublayer's residual machinery, its norm included")
    print(f"{'':20}{'operations':>12}{'with views':>12}{'kernels':>10}{'saved B/token':>15}")
    for row in counts:
        print(
            f"{row['name']:20}{row['operations']:12.1f}{row['with_views']:12.1f}"
            f"{row['kernels']:10.1f}{row['saved_bytes_per_token']:15.0f}"
        )
    return {"rows": rows, "counts": counts}


def count_sublayer(pairs: Pairs, name: str) -> dict[str, Any]:
    """Operations and saved bytes of the residual machinery alone, for one sublayer."""
    contestant = pairs.build(name, [nn.Identity(), nn.Identity()])
    contestant.run(contestant.x)
    with DispatchCount() as count:
        contestant.run(contestant.x)
    kept = saved_bytes(lambda: contestant.run(contestant.x), contestant.parameters)
    tokens = pairs.options.batch * pairs.options.tokens
    return {
        "name": name,
        "operations": count.operations / 2,
        "with_views": (count.operations + count.views) / 2,
        "kernels": count_kernels(lambda: contestant.run(contestant.x), pairs.device) / 2,
        "saved_bytes_per_token": kept / tokens / 2,
    }
