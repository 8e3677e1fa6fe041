"""Questions about texts far longer than the context: verbs, recursion, a budget, a transcript.

Names are loaded when they are first used: a command that only reads `SessionSettings` needs no
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
