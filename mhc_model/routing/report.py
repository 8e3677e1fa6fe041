"""What a checkpoint's streams, gates and mixing do on a text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from mhc_model.checkpoint import Checkpoint
from mhc_model.errors import ConfigError
from mhc_model.gates import RequestGates, gate_names
from mhc_model.routing.ascii import bars, heatmap
from mhc_model.routing.figures import Routing, SublayerRouting, watch_routing


def inspect_checkpoint(
    loaded: Checkpoint,
    text: str,
    gates: RequestGates,
    layer: int | None = None,
    ascii: bool = False,
) -> Iterator[str]:
    """What `python -m mhc_model inspect` prints, part by part.

    Args:
        loaded: the checkpoint.
        text: what the model reads meanwhile.
        gates: what `resolve_gates` takes; those of the prompt count.
        layer: show the matrices of this one; None shows all in short.
        ascii: draw matrices and figures as shades and bars.

    Raises:
        GateError: if the gates do not fit.
        ConfigError: if the text is empty, or there is no such layer.
    """
    yield describe(loaded)
    if loaded.model.config.mhc is None:
        yield "plain (mhc: null): one residual stream, no gates, no mixing"
        return
    routing = observe(loaded, text, gates)
    names = gate_names(loaded.model.config.n_layers)
    if layer is None:
        yield "\n" + summary(routing, names, ascii)
        return
    if layer >= loaded.model.config.n_layers:
        raise ConfigError(
            f"layer is {layer}; this model has layers 0 to {loaded.model.config.n_layers - 1}"
        )
    for index in (2 * layer, 2 * layer + 1):
        yield "\n" + sublayer(names[index], routing.sublayers()[index], ascii)


def describe(loaded: Checkpoint) -> str:
    """What the checkpoint is, in a line or two."""
    config = loaded.model.config
    text = (
        f"{loaded.path}: {loaded.model.count_parameters():,} parameters, {config.n_layers} layers "
        f"of width {config.d_model}, {config.n_heads} heads, {config.vocab_size} tokens, "
        f"context {config.max_seq_len}\ncontent {loaded.content_hash}"
    )
    if config.mhc is None:
        return text
    mhc = config.mhc
    how = {
        "limit": "the limit of Sinkhorn-Knopp",
        "iterations": f"{mhc.sinkhorn_iters} Sinkhorn-Knopp iterations",
        "permutations": "a mixture of permutations",
        "kronecker": "a Kronecker product of 2 x 2 matrices",
        "identity": "definition the identity",
        "free": "nothing that constrains it",
    }[mhc.projection]
    switches = (
        ("the same for every token", not mhc.dynamic),
        ("single pass", mhc.single_pass),
        ("learned collapse", mhc.collapse == "learned"),
    )
    more = "".join(f", {words}" for words, is_on in switches if is_on)
    return f"{text}\n{mhc.n_streams} streams, H_res by {how}{more}"


def observe(loaded: Checkpoint, text: str, gates: RequestGates) -> Routing:
    """Reads a text with the model and watches.

    Args:
        loaded: of an mHC model.
        text: read from the document separator on; without a tokenizer the first token ids serve.
        gates: what `resolve_gates` takes; those of the prompt count.

    Raises:
        GateError: if the gates do not fit, or the model is plain.
        ConfigError: if the text is empty.
    """
    model = loaded.model.eval()
    context = model.config.max_seq_len
    if loaded.tokenizer is None:
        tokens = list(range(min(context, model.config.vocab_size)))
    elif text:
        tokens = loaded.tokenizer.encode(text, bos=True)[:context]
    else:
        raise ConfigError("the text is empty; give one with --text")
    device = model.embedding.weight.device
    row = model.gate_rows_or_none([gates])
    with watch_routing(model) as routing, torch.inference_mode():
        model(torch.tensor([tokens], device=device), row)
    return routing


def summary(routing: Routing, names: Sequence[str], ascii: bool) -> str:
    """A line a sublayer, and the figures of the whole model."""
    records = routing.sublayers()
    width = max(map(len, names))
    streams = len(records[0].pre)
    lines = [f"{'':<{width}}   gate  |H_res'-I|  similar   moved  own stream  H_post mean  spread"]
    for name, record in zip(names, records, strict=True):
        lines.append(
            f"{name:<{width}}  {float(record.gate):5.3f}  {float(record.identity_distance):10.4f}  "
            f"{float(record.similarity):7.4f}  {float(record.drift):6.3f}  "
            f"{int(record.pre.argmax()):>3} ({float(record.pre.max()):4.2f})  "
            f"{float(record.post.mean()):11.4f}  {float(record.post.std()):6.4f}"
        )
    figures = routing.summary()
    lines += [
        "",
        f"|H_res'-I|: Frobenius norm of the gated mixing less the identity, "
        f"{math.sqrt(2 * streams):.2f} at most; similar: cosine of the streams;",
        "moved: largest change of H_res since the start of training; own stream: the one that "
        "H_pre prefers",
        f"composite gain {figures['composite_gain']:.4f}, row error {figures['row_error']:.1e}, "
        f"column error {figures['column_error']:.1e}",
    ]
    if ascii:
        distances = {
            name: float(record.identity_distance)
            for name, record in zip(names, records, strict=True)
        }
        lines += ["", "|H_res'-I| by sublayer", bars(distances, high=math.sqrt(2 * streams))]
        lines += ["", "H_pre, a row a sublayer, a column a stream (0 to 1)"]
        lines.append(heatmap([record.pre.tolist() for record in records], labels=names))
        lines += ["", "H_post (0 to 2)"]
        lines.append(heatmap([record.post.tolist() for record in records], 0.0, 2.0, names))
    return "\n".join(lines)


def sublayer(name: str, record: SublayerRouting, ascii: bool) -> str:
    """Means over the tokens of H_pre, H_post and H_res; rows of H_res send, columns receive."""
    lines = [
        f"{name}: gate {float(record.gate):.4f}",
        "H_pre  " + "  ".join(f"{value:.4f}" for value in record.pre.tolist()),
        "H_post " + "  ".join(f"{value:.4f}" for value in record.post.tolist()),
        "H_res, before the gate",
    ]
    if ascii:
        lines.append(heatmap(record.res.tolist()))
    else:
        lines += ["  " + "  ".join(f"{value:.4f}" for value in row) for row in record.res.tolist()]
    return "\n".join(lines)
