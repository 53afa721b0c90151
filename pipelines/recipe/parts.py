"""The groups of keys that a recipe is made of, with their types and defaults; those of `variants` are in `mixtures.py`.

Types only say what a value is. Whether the values make sense together is said by `bam_core.config` (one
place for a recipe, a checkpoint and a Python caller) and by `checks.py`. Everything here is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipelines.recipe.base import Named, Part
from pipelines.recipe.values import Count, Number, Text, Workers

Dtype = Literal["bf16", "fp32", "fp64"]


class InstalledText(Part):
    """Text that every Python installation has: documentation strings, sources, licences of packages."""

    kind: Literal["python-docs", "python-code", "python-licences"]


class GeneratedMath(Part):
    """Arithmetic and algebra with worked steps, made from a seed."""

    kind: Literal["generated-math"]
    documents: Count = 4000
    seed: Count = 0


class FileText(Part):
    """Local or remote files. path: a URI or a glob; a relative one is relative to the current folder."""

    kind: Literal["text", "jsonl", "parquet"]
    path: Text
    column: Text = "text"


class HubText(Part):
    """A data set of the Hugging Face hub; `revision` is resolved to a commit, which enters the key."""

    kind: Literal["hf"]
    path: Text
    revision: Text | None = None
    split: Text = "train"
    column: Text = "text"


SOURCES = {
    "python-docs": InstalledText,
    "python-code": InstalledText,
    "python-licences": InstalledText,
    "generated-math": GeneratedMath,
    "text": FileText,
    "jsonl": FileText,
    "parquet": FileText,
    "hf": HubText,
}


def _by_kind(table: Mapping[str, type[Part]]) -> Discriminator:
    """Chooses the member of a union by its `kind`; None (an error of pydantic's) for an unknown one."""

    def tag(value: Any) -> str | None:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        return table[kind].__name__ if isinstance(kind, str) and kind in table else None

    return Discriminator(tag)


Source = Annotated[
    Annotated[InstalledText, Tag("InstalledText")]
    | Annotated[GeneratedMath, Tag("GeneratedMath")]
    | Annotated[FileText, Tag("FileText")]
    | Annotated[HubText, Tag("HubText")],
    _by_kind(SOURCES),
]


class ExpertOverride(Part):
    """What one domain's expert does differently from `phases.expert`."""

    tokens: Count | None = None
    lr: Number | None = None


class Domain(Part):
    """valid_frac: fraction of documents held out. max_bytes: read at most this much text (UTF-8 bytes)."""

    source: Source
    valid_frac: Number = 0.05
    max_bytes: Count | None = None
    expert: ExpertOverride = ExpertOverride()


class BpeTokenizer(Part):
    """A byte-level BPE trained on the text of `domains` (all of them by default)."""

    kind: Literal["bpe"]
    vocab_size: Count
    domains: list[Text] | None = None


class FileTokenizer(Part):
    """A `tokenizer.json`. vocab_size: counted from the file unless given."""

    kind: Literal["file"]
    path: Text
    vocab_size: Count | None = None


TOKENIZERS = {"bpe": BpeTokenizer, "file": FileTokenizer}
Tokenizer = Annotated[
    Annotated[BpeTokenizer, Tag("BpeTokenizer")] | Annotated[FileTokenizer, Tag("FileTokenizer")],
    _by_kind(TOKENIZERS),
]


class Model(Part):
    """The dense seed model; its vocabulary is the tokenizer's. n_kv_heads: as n_heads by default."""

    d_model: Count
    n_layers: Count
    n_heads: Count
    n_kv_heads: Count | None = None
    d_ff: Count
    max_seq_len: Count
    residual: Literal["parallel", "sequential"] = "parallel"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Number = 1e-5
    rope_theta: Number = 10_000.0
    tie_embeddings: bool = True
    qk_norm: bool = False
    rotary_frac: Number = 1.0
    rotary_pairs: Literal["half", "interleaved"] = "half"


class Phase(Part):
    """One phase of training. tokens, batch_tokens: predicted tokens; the batch is the global one."""

    tokens: Count
    batch_tokens: Count
    lr: Number
    warmup_frac: Number = 0.02
    min_lr_frac: Number = 0.1
    weight_decay: Number = 0.1
    grad_clip: Number = 1.0
    dtype: Dtype = "bf16"


def _uniform_or_shares(value: Any) -> str:
    return "uniform" if isinstance(value, str) else "shares"


Shares = Named[Number]
Data = Annotated[
    Annotated[Literal["uniform"], Tag("uniform")] | Annotated[Shares, Tag("shares")],
    Discriminator(_uniform_or_shares),
]


class SeedPhase(Phase):
    data: Data = "uniform"


class ExpertPhase(Phase):
    """In `data`, `own` stands for the expert's own domain."""

    data: Shares = Field({"own": 1.0})


class MixturePhase(Phase):
    """match: train variants on the same `data` (tokens), or on tokens that cost the same compute.

    The last four are for variants that have such a part: see `bam_core.config.TrainConfig`.
    """

    data: Data = "uniform"
    match: Literal["data", "compute"] = "data"
    load_balancing_coef: Number = 0.01
    z_loss_coef: Number = 0.001
    balance_rate: Number = 1e-3
    router_bias_frac: Number = 0.5
    gumbel_rate: Number = 1e-4
    gumbel_min: Number = 0.5


class Phases(Part):
    seed: SeedPhase
    expert: ExpertPhase
    mixture: MixturePhase


class Evaluate(Part):
    """tokens: held-out tokens per domain at most."""

    tokens: Count = 100_000
    tasks: list[Text] = Field([])
    dtype: Dtype = "fp32"


class Space(Part):
    """Where a number is searched, in one of three ways: between two numbers, or one of several."""

    uniform: list[Number] | None = None
    log_uniform: list[Number] | None = None
    choice: list[Number] | None = None

    def to_json(self) -> dict[str, list[float]]:
        """The ways that are given; one, in a recipe that was checked."""
        return {kind: values for kind, values in self.to_dict().items() if values is not None}


class Tune(Part):
    """A search over numbers of the recipe, by trainings like that of `stage`; its best values are used in their place.

    tokens: of one trial, as many as the stage's by default. rungs, reduction: at each rung but the last, which is the
    end, the best 1/reduction go on. domains: whose held-out text judges a trial (the expert's own, otherwise all).
    eval_tokens: of each domain's at most.
    """

    stage: Text
    search: Named[Space]
    trials: Count = 8
    tokens: Count | None = None
    rungs: Count = 3
    reduction: Count = 3
    domains: list[Text] | None = None
    eval_tokens: Count = 20_000


class Group(Part):
    """A worker group: processes, and the cores and GPUs of each.

    workers: a number, or [fewest, most] for a group that grows and shrinks with the cluster.
    placement: on as few nodes as will do, or on as many as there are.
    strategy: every worker holds the whole training state (`ddp`), or a shard of it (`fsdp`).
    """

    workers: Workers = (1, 1)
    cpus: Count = 1
    gpus: Count = 0
    placement: Literal["pack", "spread"] = "pack"
    strategy: Literal["ddp", "fsdp"] = "ddp"


class Runtime(Part):
    """Where and how it runs; never part of a key. `train` is for the variants and the dense baseline.

    max_parallel: stages at once. max_trials: trials of one search at once. checkpoint_steps: steps between checkpoints.
    micro_batch_rows: rows of one forward pass, smaller batches accumulate. activation_checkpointing: compute a layer's
    activations again in the backward pass rather than keep them. compile: let torch.compile fuse each layer.
    """

    seed: Group = Group()
    expert: Group = Group()
    train: Group = Group()
    max_parallel: Count | None = None
    max_trials: Count | None = None
    checkpoint_steps: Count = 100
    micro_batch_rows: Count | None = None
    activation_checkpointing: bool = False
    compile: bool = False
