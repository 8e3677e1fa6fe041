"""lm-evaluation-harness on our checkpoints, and whether its samples are ours.

In: a checkpoint, gates, names of the harness's tasks. Out: the harness's results; and, sample by
sample, where they differ from those of `python -m evals`. Needs the extra `eval` (lm-eval). May
import everything of evals but evals.report.

    model.py      `GatedLM`: the harness's model `mhc-gates` over our engine
    command.py    one run of the harness; its tasks from local files
    agreement.py  its samples beside ours
    settings.py   configuration of `python -m evals.harness`

The import of this room tells the harness of `mhc-gates`: in its own command line the model is there
after `import evals.harness`.
"""

import lazy_loader
import lm_eval.models  # noqa: F401  (the harness adds its own only where nobody else has)
from lm_eval.api.registry import model_registry

# By name: the class is loaded once somebody asks for it, and --help does not.
model_registry.register("mhc-gates", target="evals.harness.model:GatedLM")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
