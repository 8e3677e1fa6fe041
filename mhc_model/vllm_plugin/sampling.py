"""A sample's parameters in vLLM's terms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from mhc_model.engine import Row, Structure
from mhc_model.vllm_plugin.admission import GATES


def sampling_of(row: Row) -> vllm.SamplingParams:
    """What vLLM is asked for a sample; text and stop strings are ours."""
    sampling = row.request.sampling
    scores_prompt = sampling.prompt_logprobs_from is not None
    return vllm.SamplingParams(
        max_tokens=max(1, sampling.max_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) if sampling.logit_bias else None,
        allowed_token_ids=_listed(sampling.allowed_token_ids),
        min_tokens=sampling.min_tokens,
        structured_outputs=_form(sampling.structure),
        seed=row.seed,
        stop_token_ids=sorted(row.stop_ids),
        ignore_eos=True,  # the ends of a document are among the stop ids
        logprobs=sampling.top_logprobs if sampling.logprobs else None,
        prompt_logprobs=sampling.top_logprobs if scores_prompt else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=_extra(row),
    )


def _listed(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)


def _form(structure: Structure | None) -> StructuredOutputsParams | None:
    """The form of an answer in vLLM's terms, which has llguidance too."""
    if structure is None:
        return None
    source = structure.source
    if structure.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(source))
    if structure.kind == "json" and structure.compact:
        # vLLM has this for all requests of an engine; llguidance also reads it in the schema.
        source = json.dumps({**json.loads(source), "x-guidance": {"whitespace_flexible": False}})
    return StructuredOutputsParams(**{structure.kind: source})


def _extra(row: Row) -> dict[str, Any] | None:
    if row.gates is None or row.answer_gates is None:
        return None
    if not row.changes_gates:
        return {GATES: row.gates.tolist()}
    return {GATES: {"prompt": row.gates.tolist(), "answer": row.answer_gates.tolist()}}
