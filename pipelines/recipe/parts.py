"""The groups of keys that a recipe is made of, with their types and defaults.

Those of `phases` are in `phases.py`, those of `variants` in `mixtures.py`.

Types only say what a value is. Whether the values make sense together is said by `bam_core.config` (one
place for a recipe, a checkpoint and a Python caller) and by `checks.py`. Everything here is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from pipelines.recipe.base import IMPORT, Named, Part, is_import
from pipelines.recipe.plugged import MetricName
from pipelines.recipe.routing import MaybeRouting, Routing
from pipelines.recipe.sources import Source, TextSource, by_kind, member
from pipelines.recipe.values import Count, Dtype, Number, PartOf, Text, Workers


class Discover(Part):
    """Domains found in text that has no labels: balanced k-means on tf-idf. n: clusters, numbered from 0.

    balance: what the clusters have equally much of. features: words that are counted. dims: of the space in which
    documents are compared. seed: of the search for clusters, whatever the recipe's own is.
    """

    source: TextSource
    n: Count
    balance: Literal["bytes", "documents"] = "bytes"
    features: Count = 20_000
    dims: Count = 100
    seed: Count = 0


class ExpertOverride(Part):
    """What one domain's expert does differently from `phases.expert`.

    train: of the first domain, whether a copy of the seed is trained on it too; without, its expert is the seed itself.
    """

    tokens: Count | None = None
    lr: Number | None = None
    train: bool | None = None

    def changes(self) -> dict[str, Any]:
        """Fields of the phase -> their values here."""
        return {name: getattr(self, name) for name in ("tokens", "lr") if getattr(self, name) is not None}


class ImportedExpert(ExpertOverride):
    """An expert that is there: the folder, or id of the hub, of a model of the seed's shape or of a LoRA adapter of it.

    With `tokens` it is trained on from there, as `phases.expert` says; without, it is taken as it is.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    source: Text = Field(alias=IMPORT)
    revision: Text | None = None


def _which_expert(value: Any) -> str:
    return "name" if isinstance(value, str) else IMPORT if is_import(value, ImportedExpert) else "override"


Expert = Annotated[
    Annotated[Text, Tag("name")] | Annotated[ImportedExpert, Tag(IMPORT)] | Annotated[ExpertOverride, Tag("override")],
    Discriminator(_which_expert),
]


class Domain(Part):
    """valid_frac: fraction of documents held out. max_bytes: read at most this much text (UTF-8 bytes).

    valid: held-out text of its own, in place of a part of `source`, all of which is then trained on.
    dedup: what counts as a copy and is dropped: equal text (`exact`), also text that is much alike (`minhash`), `none`.
    dedup_threshold: how much alike, as a Jaccard index of runs of five words.
    expert: how its training differs, a checkpoint that is imported, or the name of an adopted expert (`bam adopt`) that
    stands in its place.
    """

    source: Source
    valid: TextSource | None = None
    valid_frac: Number = 0.05
    max_bytes: Count | None = None
    dedup: Literal["exact", "minhash", "none"] = "exact"
    dedup_threshold: Number = 0.8
    expert: Expert = ExpertOverride()


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


class SentencePieceTokenizer(Part):
    """A sentencepiece model. vocab_size: counted from the file unless given."""

    kind: Literal["sentencepiece"]
    path: Text
    vocab_size: Count | None = None


class ImportedTokenizer(Part):
    """That of the imported seed, with the tokens that `vocabulary: union` adds."""

    kind: Literal["import"]


TOKENIZERS: dict[str, type[Part]] = {
    "bpe": BpeTokenizer,
    "file": FileTokenizer,
    "sentencepiece": SentencePieceTokenizer,
    "import": ImportedTokenizer,
}
Tokenizer = Annotated[
    Annotated[BpeTokenizer, member(BpeTokenizer)]
    | Annotated[FileTokenizer, member(FileTokenizer)]
    | Annotated[SentencePieceTokenizer, member(SentencePieceTokenizer)]
    | Annotated[ImportedTokenizer, member(ImportedTokenizer)],
    by_kind(TOKENIZERS),
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


class TaskFile(Part):
    """A file of tasks (`bam_core.evaluate.task_files`). path: a file or URI. limit: its first items alone.

    execute: run, confined, the code that a model writes. new_tokens: of an answer at most; 0 generates none.
    """

    path: Text
    limit: Count | None = None
    execute: bool = False
    new_tokens: Count = 128


def _with_keys(value: Any) -> Any:
    if not isinstance(value, str | Mapping | TaskFile):
        raise ValueError("must be a path or a mapping of keys")
    return {"path": value} if isinstance(value, str) else value


Tasks = Annotated[TaskFile, BeforeValidator(_with_keys, json_schema_input_type=Text | TaskFile)]
"""A path alone stands for its defaults."""


class Evaluate(Part):
    """tokens: held-out tokens per domain, in whole documents. stride: by how many a window of max_seq_len moves.

    max_overlap: share of a held-out document's runs of 13 words that may occur in training text. max_contaminated:
    fraction of a domain's held-out documents that may have more. allow_overlap: go on where there are more. routing:
    what to write down of the mixtures' routers. baselines: variants or stages that the mixtures are compared with.
    part: [i, n], of the held-out documents every n-th, the i-th first: choose settings on one part, judge on another.
    metrics: of plug-ins, computed beside perplexity.
    """

    tokens: Count = 100_000
    stride: Count | None = None
    part: PartOf | None = None
    metrics: list[MetricName] = Field(default=[])
    tasks: list[Tasks] = Field(default=[])
    dtype: Dtype = "fp32"
    max_overlap: Number = 0.5
    max_contaminated: Number = 0.05
    allow_overlap: bool = False
    routing: MaybeRouting = Routing()
    baselines: list[Text] | None = None


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
    eval_tokens: of each domain's at most. seeds: with several in the recipe, search for the first and let all use what
    it found, or search for each.
    """

    stage: Text
    search: Named[Space]
    trials: Count = 8
    tokens: Count | None = None
    rungs: Count = 3
    reduction: Count = 3
    domains: list[Text] | None = None
    eval_tokens: Count = 20_000
    seeds: Literal["first", "each"] = "first"


class Export(Part):
    """A model for transformers. to: `auto`, `bam` (with code of its own) or a class by its model_type, as `mixtral`.

    dtype: of the weights; as they are stored by default.
    """

    to: Text = "auto"
    dtype: Dtype | None = None


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
