"""A request's gates on their way in: checked before the scheduler sees them.

Keys and values depend on the gates, so what vLLM keeps of prompts' beginnings must be told apart by
them. vLLM asks for that with a cache salt; here every request gets one, made of its gates and of
the salt that it came with.
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from typing import Any

from torch import Tensor
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import BeamSearchParams, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from mhc_model.config import ModelConfig
from mhc_model.errors import GateError
from mhc_model.gates import PhaseGates, gates_hash, resolve_gates
from mhc_model.huggingface import MHCGatesConfig

GATES = "gates"
"""The name of the gates in `SamplingParams.extra_args`."""

_LEARNED = "learned"
_MARK = "_mhc_gates"


class RefusedGates(GateError, VLLMClientError):
    """A `GateError` that vLLM's server takes for what it is: the request's fault, a 400."""


def admit(request: EngineCoreRequest, config: ModelConfig) -> None:
    """Checks and expands the gates of a request, and salts it with them.

    Gates are what `resolve_gates` takes, or the JSON text of an object of "prompt" and "answer":
    over HTTP, vLLM's `vllm_xargs` hold texts, numbers and lists of them, but no objects.

    Args:
        request: its parameters are changed in place: `extra_args["gates"]` becomes a list of 2L
            numbers; a mapping of "prompt" and "answer" to such lists or None where they differ; or
            disappears where all are the learned gates.
        config: of the model.

    Raises:
        RefusedGates: for gates that `resolve_gates` refuses, and for any on a model without.
    """
    parameters = request.sampling_params
    given = None if parameters is None else (parameters.extra_args or {}).get(GATES)
    phases = _resolve(given, config)
    if config.gateless is not None:
        return
    names = tuple(map(_name, phases))
    if parameters is not None and parameters.extra_args is not None:
        extra = {key: value for key, value in parameters.extra_args.items() if key != GATES}
        prompt, answer = (None if gates is None else gates.tolist() for gates in phases)
        if names[0] != names[1]:
            extra[GATES] = {"prompt": prompt, "answer": answer}
        elif prompt is not None:
            extra[GATES] = prompt
        parameters.extra_args = extra
    # vLLM keeps what was generated as well as prompts, so both phases are in the name.
    name = names[0] if names[0] == names[1] else " ".join(names)
    request.cache_salt = _salt(name, request.cache_salt)


def _resolve(given: Any, config: ModelConfig) -> PhaseGates:
    try:
        return resolve_gates(_parsed(given) if isinstance(given, str) else given, config)
    except GateError as error:
        raise RefusedGates(str(error)) from None


def _parsed(given: str) -> Any:
    """The object in a text that looks like one; any other text is a name."""
    if not given.lstrip().startswith("{"):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise GateError(
            f"gates are {reprlib.repr(given)}, which is not valid JSON ({error}); give "
            f'{{"prompt": ..., "answer": ...}}'
        ) from None


def _name(gates: Tensor | None) -> str:
    return _LEARNED if gates is None else gates_hash(gates)


def _salt(name: str, given: str | None) -> str:
    """64 characters, of the gates and of the salt that a request was given, if any."""
    parts = name if given is None else f"{name} {given}"
    return hashlib.sha256(parts.encode()).hexdigest()


def install() -> None:
    """Puts `admit` into vLLM's way from a prompt to a request; may be called again.

    vLLM has no hook there that knows the model, and the one method is what `LLM`, its engines and
    its HTTP server share.
    """
    original = InputProcessor.process_inputs
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def process_inputs(self: InputProcessor, *args: Any, **kwargs: Any) -> EngineCoreRequest:
        request = original(self, *args, **kwargs)
        config = self.model_config.hf_config
        if isinstance(config, MHCGatesConfig):
            admit(request, config.to_model_config())
        return request

    setattr(process_inputs, _MARK, True)
    InputProcessor.process_inputs = process_inputs
    for kind in (CompletionRequest, ChatCompletionRequest):
        _refuse_beams(kind)


def _refuse_beams(kind: type[Any]) -> None:
    """vLLM's beam search makes parameters of its own, without what a request has in vllm_xargs."""
    original = kind.to_beam_search_params

    @functools.wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> BeamSearchParams:
        if GATES in (self.vllm_xargs or {}):
            raise RefusedGates(
                "use_beam_search is true, and vLLM's beam search takes no gates: leave out one of "
                "them"
            )
        return original(self, *args, **kwargs)

    kind.to_beam_search_params = to_beam_search_params


Numbers = list[float] | None
"""2L gates; None for the learned ones."""


def gates_of(parameters: SamplingParams | None) -> tuple[Numbers, Numbers]:
    """The gates of an admitted request: of its prompt and of its answer."""
    extra = None if parameters is None else parameters.extra_args
    gates = None if extra is None else extra.get(GATES)
    if isinstance(gates, dict):
        return gates["prompt"], gates["answer"]
    return gates, gates
