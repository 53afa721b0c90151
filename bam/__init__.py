"""bam from Python: what the command line does, in a script or a notebook, and the parts of it by themselves.

    import bam

    pipeline = bam.load("quickstart", set={"seed": 1})
    pipeline.plan()                           # a table: what would run, and why
    pipeline.run()                            # what `bam run quickstart --set seed=1` does
    pipeline.results().perplexity             # a pandas frame; also ["costs"], ["routing"], ["documents"] ...
    pipeline.results().figures                # the report's drawings

    store = bam.open_store("./bam_store")
    store["train.bam"].generate("To begin with")

    made = bam.upcycle({"general": seed, "law": law}, "bam")    # models in memory
    made.receipt()

Nothing here decides anything: it calls what the command line calls, with the same defaults and the same environment
(BAM_STORE, MLFLOW_TRACKING_URI, RAY_ADDRESS, BAM_EXECUTOR), and what is wrong is said in the same words, as exceptions
(`BamError` and its children). docs/python.md has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bam_core.lazy import lazy_names

if TYPE_CHECKING:
    from bam.artifacts import Artifact, Store, open_store
    from bam.checks import doctor
    from bam.drawings import Figure, Figures, plot_routing
    from bam.pipeline import Pipeline, load, recipes
    from bam.plans import Plan
    from bam.results import Results
    from bam.runs import Job, Run
    from bam.views import Difference, Lineage
    from bam_core.config import ModelConfig
    from bam_core.data.rows import TextRows
    from bam_core.data.tokenize import Tokenizer
    from bam_core.errors import (
        ArtifactDamaged,
        BamError,
        ExecutorLost,
        InvalidInput,
        LeaseHeld,
        Problem,
        StageFailed,
        StoreError,
        TrainingDiverged,
        UsageError,
    )
    from bam_core.evaluate.perplexity import score
    from bam_core.nn.lm import LM, init_weights
    from bam_core.nn.routing import Routing, route
    from bam_core.upcycle.models import Upcycled
    from bam_core.upcycle.models import extract_model as extract
    from bam_core.upcycle.models import upcycle_models as upcycle
    from bam_core.upcycle.receipt import receipt
    from bam_core.upcycle.variants import VARIANTS, AttentionSpec, FFNSpec, MergeSpec, Variant

    MixtureLM = LM

_HOMES = {
    "bam.artifacts": ("Artifact", "Store", "open_store"),
    "bam.checks": ("doctor",),
    "bam.drawings": ("Figure", "Figures", "plot_routing"),
    "bam.pipeline": ("Pipeline", "load", "recipes"),
    "bam.plans": ("Plan",),
    "bam.results": ("Results",),
    "bam.runs": ("Job", "Run"),
    "bam.views": ("Difference", "Lineage"),
    "bam_core": (
        "VARIANTS",
        "AttentionSpec",
        "FFNSpec",
        "LM",
        "MergeSpec",
        "MixtureLM",
        "ModelConfig",
        "Routing",
        "TextRows",
        "Tokenizer",
        "Upcycled",
        "Variant",
        "init_weights",
        "receipt",
        "route",
        "score",
    ),
    "bam_core.errors": (
        "ArtifactDamaged",
        "BamError",
        "ExecutorLost",
        "InvalidInput",
        "LeaseHeld",
        "Problem",
        "StageFailed",
        "StoreError",
        "TrainingDiverged",
        "UsageError",
    ),
}
_WHERE = {name: (module, name) for module, names in _HOMES.items() for name in names}
_WHERE |= {"upcycle": ("bam_core", "upcycle_models"), "extract": ("bam_core", "extract_model")}

__all__ = [
    "LM",
    "VARIANTS",
    "Artifact",
    "ArtifactDamaged",
    "AttentionSpec",
    "BamError",
    "Difference",
    "ExecutorLost",
    "FFNSpec",
    "Figure",
    "Figures",
    "InvalidInput",
    "Job",
    "LeaseHeld",
    "Lineage",
    "MergeSpec",
    "MixtureLM",
    "ModelConfig",
    "Pipeline",
    "Plan",
    "Problem",
    "Results",
    "Routing",
    "Run",
    "StageFailed",
    "Store",
    "StoreError",
    "TextRows",
    "Tokenizer",
    "TrainingDiverged",
    "Upcycled",
    "UsageError",
    "Variant",
    "doctor",
    "extract",
    "init_weights",
    "load",
    "open_store",
    "plot_routing",
    "receipt",
    "recipes",
    "route",
    "score",
    "upcycle",
]


__getattr__, __dir__ = lazy_names(globals(), _WHERE)
