"""What a stage does, counted: operations and bytes that a calibration knows the price of.

A training step is not FLOPs alone: on small models calls, elementwise passes and the optimizer's sweep weigh as much.
So it is counted in kinds (`STEP_COSTS`), whose prices are fitted on measured steps. Memory likewise (`PEAK_BYTES`).
Every count is proportional to what it counts, so no estimate falls when a model, a batch or a run grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.costs import flops_by_operation, params_total, training_bytes, training_flops

STEP_COSTS = ("products", "attention", "values", "logits", "parameters", "moves", "calls", "experts")
"""Of a training step: FLOPs of products of weights; FLOPs of scores and weighted values; values that elementwise
operations pass over; logits; parameters that the optimizer updates; parameters whose gradient a micro-batch adds; calls
of kernels; calls of experts one by one."""
PASS_COSTS = ("products", "attention", "values", "logits", "calls", "experts")
"""The same of a forward pass that only scores."""
PEAK_BYTES = ("state", "values", "scores", "logits", "shapes")
"""Of a training worker beyond an idle process: weights, masters, gradients and moments; what is kept of a micro-batch
for the backward pass; attention probabilities, where they are kept; logits; kernels, one for each number of rows that
an expert was given."""
SHORT_ROW = 512
"""Positions up to which the CPU's attention keeps its probabilities: `nn.short_attention.MAX_ROW`."""
KERNELS_KEPT, BLOCK = 1024, 32
"""Kernels that the CPU's library of products keeps, each for one shape; rows of which the groups of experts are a
multiple (`nn.grouped`)."""
_ATTENTION = ("scores", "weighted_values")

Counts = dict[str, float]


@dataclass(frozen=True)
class Training:
    """One worker's part of a training.

    rows: of one step, of this worker. micro_batch_rows: of one forward pass. recompute: activation checkpointing.
    shards: workers that share the training state; 1 where each holds all of it. teacher: a model whose forward pass
    goes along.
    """

    model: ModelConfig
    phase: TrainConfig
    rows: int
    micro_batch_rows: int = 8
    recompute: bool = False
    shards: int = 1
    gpu: bool = False
    teacher: ModelConfig | None = None

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        phase: TrainConfig,
        *,
        workers: int = 1,
        micro_batch_rows: int = 8,
        recompute: bool = False,
        sharded: bool = False,
        gpu: bool = False,
        teacher: ModelConfig | None = None,
    ) -> Training:
        """The part of the busiest of so many workers."""
        rows = ceil(phase.rows_per_batch / workers)
        shards = workers if sharded else 1
        return cls(model, phase, rows, min(micro_batch_rows, rows), recompute, shards, gpu, teacher)

    @property
    def micro_batches(self) -> int:
        return ceil(self.rows / self.micro_batch_rows)

    def step_costs(self) -> Counts:
        """By `STEP_COSTS`, of one step of this worker."""
        tokens, seq_len, micro = self.rows * self.phase.seq_len, self.phase.seq_len, self.micro_batches
        again = 4 / 3 if self.recompute else 1.0
        total = training_flops(self.model, tokens, seq_len)
        attention = 3 * _attention_flops(self.model, tokens, seq_len)
        parameters = params_total(self.model)
        return {
            "products": (total - attention) * again,
            "attention": attention * again,
            "values": 3 * again * tokens * _width(self.model),
            "logits": tokens * _vocabulary(self.model),
            "parameters": parameters / self.shards,
            "moves": parameters * micro / self.shards,
            "calls": 3 * again * micro * _calls(self.model),
            "experts": 3 * again * micro * _routed_experts(self.model),
        }

    def teacher_costs(self) -> Counts:
        """By `PASS_COSTS`, of the teacher's part in one step."""
        assert self.teacher is not None, "there is no teacher"
        costs = pass_costs(self.teacher, self.rows * self.phase.seq_len, self.phase.seq_len)
        calls, experts = _calls(self.teacher), _routed_experts(self.teacher)
        return costs | {"calls": self.micro_batches * calls, "experts": self.micro_batches * experts}

    def peak_bytes(self) -> Counts:
        """By `PEAK_BYTES`, of this worker."""
        model, dtype = self.model, self.phase.dtype
        tokens, value = self.micro_batch_rows * self.phase.seq_len, {"bf16": 2, "fp32": 4, "fp64": 8}[dtype]
        layers = model.n_layers
        kept, scores = _width(model), _score_width(model, self.phase.seq_len)
        if self.recompute:  # each layer's input, and one layer while it is computed again
            kept, scores = layers * model.d_model + kept / layers, scores / layers
        short = not self.gpu and dtype == "bf16" and self.phase.seq_len <= SHORT_ROW
        state = training_bytes(model, dtype) / self.shards
        if self.shards > 1:  # one layer is gathered whole
            state += 2 * value * params_total(model) / layers
        return {
            "state": state,
            "values": value * tokens * kept,
            "scores": self._bytes_per_score(value, short=short) * tokens * scores,
            "logits": value * tokens * _vocabulary(model),
            "shapes": 0.0 if self.gpu else float(self._shapes(tokens)),
        }

    def _bytes_per_score(self, value: int, *, short: bool) -> float:
        """What is kept of one pair of positions up to the diagonal. Where scores are capped, no kernel does it: the
        whole square is kept, before and after the softmax in float32 and once in the model's dtype."""
        if self.model.attention_softcap is not None:
            return 2.0 * (2 * max(4, value) + (value if value < 4 else 0))
        return float(value) if short else 0.0

    def _shapes(self, tokens: int) -> int:
        """Kernels of the products of experts: six for each number of rows that they are given, as many as are kept."""
        ffn = self.model.ffn
        if ffn is None or ffn.top_k == ffn.n_experts:
            return 0
        rows = tokens * ffn.top_k
        lengths = ceil(rows / BLOCK) if rows >= BLOCK * ffn.n_experts else rows
        return min(KERNELS_KEPT, 6 * lengths, 6 * _routed_experts(self.model) * self.micro_batches * self.phase.n_steps)

    def with_micro_batches_of(self, rows: int) -> Training:
        return replace(self, micro_batch_rows=min(rows, self.rows))


def pass_costs(model: ModelConfig, tokens: float, context: int, batch_tokens: int = 4096) -> Counts:
    """By `PASS_COSTS`, of scoring so many tokens in rows of `context`, `batch_tokens` at a time."""
    attention = _attention_flops(model, tokens, context)
    total, batches = (
        training_flops(_undressed(model), ceil(tokens), context) / 3,
        ceil(tokens / max(batch_tokens, context)),
    )
    return {
        "products": total - attention,
        "attention": attention,
        "values": tokens * _width(model),
        "logits": tokens * _vocabulary(model),
        "calls": batches * _calls(model),
        "experts": batches * _routed_experts(model),
    }


def layer_bytes(model: ModelConfig, tokens: int, value: int = 4) -> float:
    """What a forward pass over so many tokens holds at once: the values of one layer."""
    return value * tokens * _width(model) / model.n_layers


def _undressed(model: ModelConfig) -> ModelConfig:
    """Without what only training computes."""
    if model.ffn is None or not model.ffn.dense_router_gradient:
        return model
    return replace(model, ffn=replace(model.ffn, dense_router_gradient=False))


def _attention_flops(model: ModelConfig, tokens: float, context: int) -> float:
    """FLOPs of one forward pass that grow with the context; a causal position sees half of it on average."""
    by_operation = flops_by_operation(model, 1)
    return sum(by_operation.get(name, 0) for name in _ATTENTION) * tokens * (context + 1) / 2


def _width(model: ModelConfig) -> float:
    """Values that the layers make of one token: each is passed over, and most are kept for the backward pass."""
    heads = model.n_heads * model.head_dim
    groups = model.n_kv_heads * model.head_dim
    total = 0.0
    for layer in range(model.n_layers):
        attention, ffn = model.attention_at(layer), model.ffn_at(layer)
        E, kv = (attention.n_experts, attention.kv) if attention else (1, "expert")
        queries = 1 if kv == "value_only" else E
        keys, values = (E if kv == "expert" else 1), (1 if kv == "shared" else E)
        experts = _experts_run(ffn.n_experts, ffn.top_k, ffn.dense_router_gradient) if ffn else 1
        hidden = experts * model.d_ff / (ffn.split if ffn else 1)
        hidden += model.d_ff if ffn and ffn.shared_expert else 0
        total += 4 * model.d_model + heads * (queries + E) + groups * (keys + values)
        total += (2 + model.gated) * hidden
        total += 2 * model.d_model * experts if ffn else 0
    return total


def _experts_run(n_experts: int, top_k: int, dense_gradient: bool) -> int:
    return n_experts if dense_gradient else top_k


def _score_width(model: ModelConfig, seq_len: int) -> float:
    """Attention probabilities of one token, over all layers, up to the diagonal."""
    total = 0
    for layer in range(model.n_layers):
        attention = model.attention_at(layer)
        sets = attention.n_experts if attention and attention.kv != "value_only" else 1
        total += sets * model.n_heads
    return total * (seq_len + 1) / 2


def _vocabulary(model: ModelConfig) -> float:
    soft = model.shared is not None and model.is_routed("head") and model.shared.head != "top1"
    return model.vocab_size * (len(model.experts) if soft else 1)


def _routed_experts(model: ModelConfig) -> int:
    """FFN experts of all layers that are called one by one."""
    found = (model.ffn_at(layer) for layer in range(model.n_layers))
    return sum(ffn.n_experts for ffn in found if ffn is not None and ffn.top_k < ffn.n_experts)


def _calls(model: ModelConfig) -> float:
    """In units of a dense layer's."""
    return 1.0 + model.n_layers + sum(model.attention_at(layer) is not None for layer in range(model.n_layers))
