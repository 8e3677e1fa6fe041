"""mHC transformers whose routing is an argument: model, gates, checkpoints, generation.

What comes in: text or token ids, and a gate vector a request. What goes out: logits and
completions, checkpoints on disk, and figures of what the streams did. Nothing here imports Ray,
FastAPI or the packages beside this one.

The ground, which everything may import:

    errors.py   what goes wrong      settings.py   strict configuration, command lines
    files/      whole or not at all  config.py     what a model and a policy are
    gates.py    what a caller may    mhc_config.py the family of hyper-connections
                give as gates        running/      how a command says what it does, and stops

The rooms, each of which imports only what stands before it:

    tokenizer/   text <-> ids
    streams/     mHC around one sublayer
    decoder/     ids + gates -> logits
    checkpoint/  a model on disk
    routing/     what the streams do         engine/  requests -> completions

And what stands on them: policy.py (gates from a prompt), generation.py and engines.py (text from
text, engines by name), conversion/ (pretrained models in and out), recursion/ (long texts),
huggingface.py and vllm_plugin/ (the model in transformers and vLLM), commands/ (`python -m
mhc_model`). sinkhorn.py and kernels.py are short names for a part of streams/.

Names are loaded when they are first used: a command that only reads its settings needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
