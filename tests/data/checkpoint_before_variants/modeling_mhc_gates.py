"""Lets transformers load this directory with trust_remote_code=True."""

try:
    from mhc_model.huggingface import MHCGatesConfig, MHCGatesForCausalLM
except ModuleNotFoundError as error:
    raise ImportError(
        f"This checkpoint needs the project that wrote it, mhc-gates, and {error.name} is not "
        "installed: run `pip install .` in a clone of the project."
    ) from error

__all__ = ["MHCGatesConfig", "MHCGatesForCausalLM"]
