"""Branch-Attend-Mix: the science and the plan, without Ray, MLflow, network or pydantic.

Read top-down: `config` (what a model and a training phase are), `nn` (the model), `upcycle` (dense experts to
a mixture), `data`, `train`, `evaluate`, and `graph` (which stages run, and why).

What is named here can be used by itself, each in a few lines (`examples/`): dense models to a mixture and back,
routers, what holds before any training, a model's loss on text. Each is imported when it is first asked for, so that
`import bam_core` costs nothing; `bam` is whole pipelines from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bam_core.lazy import lazy_names

if TYPE_CHECKING:
    from bam_core.checkpoint import load_model, write_model
    from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts, TrainConfig
    from bam_core.data.rows import TextRows
    from bam_core.data.tokenize import Tokenizer, train_bpe
    from bam_core.errors import ArtifactDamaged, BamError, InvalidInput, Problem, UsageError
    from bam_core.evaluate.perplexity import DomainScore, score
    from bam_core.nn.decode import Decoder
    from bam_core.nn.generate import generate
    from bam_core.nn.lm import LM, init_weights
    from bam_core.nn.routing import GATES, Routing, dense_gate, route, router_logits
    from bam_core.upcycle.models import Upcycled, extract_model, upcycle_models
    from bam_core.upcycle.receipt import receipt
    from bam_core.upcycle.variants import VARIANTS, AttentionSpec, FFNSpec, MergeSpec, Variant

    MixtureLM = LM

_HOMES = {
    "bam_core.checkpoint": ("load_model", "write_model"),
    "bam_core.config": ("AttentionExperts", "FFNExperts", "ModelConfig", "SharedExperts", "TrainConfig"),
    "bam_core.data.rows": ("TextRows",),
    "bam_core.data.tokenize": ("Tokenizer", "train_bpe"),
    "bam_core.errors": ("ArtifactDamaged", "BamError", "InvalidInput", "Problem", "UsageError"),
    "bam_core.evaluate.perplexity": ("DomainScore", "score"),
    "bam_core.nn.decode": ("Decoder",),
    "bam_core.nn.generate": ("generate",),
    "bam_core.nn.lm": ("LM", "init_weights"),
    "bam_core.nn.routing": ("GATES", "Routing", "dense_gate", "route", "router_logits"),
    "bam_core.upcycle.models": ("Upcycled", "extract_model", "upcycle_models"),
    "bam_core.upcycle.receipt": ("receipt",),
    "bam_core.upcycle.variants": ("VARIANTS", "AttentionSpec", "FFNSpec", "MergeSpec", "Variant"),
}
_WHERE = {name: (module, name) for module, names in _HOMES.items() for name in names}
_WHERE["MixtureLM"] = ("bam_core.nn.lm", "LM")
"""The class of a mixture is that of a dense model: which of the two it is, its config says."""

__all__ = [
    "GATES",
    "LM",
    "VARIANTS",
    "ArtifactDamaged",
    "AttentionExperts",
    "AttentionSpec",
    "BamError",
    "Decoder",
    "DomainScore",
    "FFNExperts",
    "FFNSpec",
    "InvalidInput",
    "MergeSpec",
    "MixtureLM",
    "ModelConfig",
    "Problem",
    "Routing",
    "SharedExperts",
    "TextRows",
    "Tokenizer",
    "TrainConfig",
    "Upcycled",
    "UsageError",
    "Variant",
    "dense_gate",
    "extract_model",
    "generate",
    "init_weights",
    "load_model",
    "receipt",
    "route",
    "router_logits",
    "score",
    "train_bpe",
    "upcycle_models",
    "write_model",
]


__getattr__, __dir__ = lazy_names(globals(), _WHERE)
