"""The runs: a tiny model of each variant, weights and tokens that no library's version decides, twenty steps.

Weights and tokens come from numpy's legacy generator, whose stream is frozen, and computation is in float64, so that
another machine differs by rounding alone; bf16 runs are for the machine that wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.nn.lm import LM
from bam_core.seeds import child_seed
from bam_core.train.loop import Pace, train

FILE = Path(__file__).with_name("losses.json")
N_STEPS, ROWS, SEQ_LEN, VOCAB = 20, 6, 8, 61
FIGURES = ("loss", "grad_norm")

DENSE = ModelConfig(VOCAB, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=SEQ_LEN)
NAMES = ("general", "code", "law")
PHASE = TrainConfig(
    tokens=N_STEPS * ROWS * SEQ_LEN,
    batch_tokens=ROWS * SEQ_LEN,
    lr=1e-2,
    shares={"a": 1.0},
    seq_len=SEQ_LEN,
    seed=3,
    dtype="fp64",
    load_balancing_coef=0.1,
    z_loss_coef=0.01,
    balance_rate=0.02,
    gumbel_rate=0.05,
)


def mixture(attention: AttentionExperts | None, ffn: FFNExperts | None, **changes: Any) -> ModelConfig:
    return replace(DENSE, attention=attention, ffn=ffn, experts=NAMES, **changes)


def btx(top_k: int = 1, gate: str = "softmax_topk", n_experts: int = 3, **options: Any) -> ModelConfig:
    return mixture(None, FFNExperts(n_experts, top_k, gate, **options))


def bam(kv: str = "expert", top_k: int = 3, **changes: Any) -> ModelConfig:
    return mixture(AttentionExperts(3, top_k, kv), FFNExperts(3), **changes)


VARIANTS: dict[str, ModelConfig] = {
    "dense": DENSE,
    "dense-sequential-untied": replace(DENSE, residual="sequential", tie_embeddings=False),
    "dense-layer-norm-mqa": replace(DENSE, norm="layer", n_kv_heads=1),
    "dense-qk-norm": replace(DENSE, qk_norm=True),
    "dense-rotary": replace(DENSE, n_heads=2, n_kv_heads=1, rotary_frac=0.5, rotary_pairs="interleaved"),
    "bam-expert-kv": bam(),
    "bam-shared-kv": bam("shared"),
    "bam-value-only": bam("value_only"),
    "bam-top-2-attention": bam("shared", 2),
    "bam-sequential": bam(residual="sequential"),
    "bam-qk-norm": bam(qk_norm=True),
    "bam-some-layers": mixture(AttentionExperts(3, 3, layers=(1,)), FFNExperts(3, layers=(0,))),
    "bam-router-bias": mixture(AttentionExperts(3, 3, router_bias=True), FFNExperts(3, router_bias=True)),
    "bam-dense-gradient": mixture(
        AttentionExperts(3, 1, dense_router_gradient=True), FFNExperts(3, dense_router_gradient=True)
    ),
    "btx-top-1": btx(),
    "btx-top-2-topk-softmax": btx(2, "topk_softmax"),
    "btx-top-2-renorm": btx(2, "softmax_topk_renorm"),
    "btx-ste": btx(1, "softmax_topk_ste"),
    "btx-soft": btx(3),
    "btx-sample-top-1": btx(1, "sample_top1", soft_layers=(0,)),
    "btx-split": btx(2, n_experts=6, split=2),
    "btx-shared-expert": btx(shared_expert=True),
    "btx-capacity": btx(capacity_factor=0.8),
    "btx-balance-bias": btx(2, balance="bias"),
    "btx-gain": btx(gain=(1.7, 1.4)),
    "btx-repeated-slots": btx(3, n_experts=5, slots=(*NAMES, "general", "general")),
}
RUNS: dict[str, tuple[ModelConfig, TrainConfig]] = {name: (model, PHASE) for name, model in VARIANTS.items()}
BF16 = replace(PHASE, dtype="bf16")
RUNS |= {f"{name} bf16": (VARIANTS[name], BF16) for name in ("dense", "bam-expert-kv", "bam-value-only")}


class Tokens:
    """Batches that depend on the step alone."""

    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        return np.random.RandomState(step).randint(0, VOCAB, size=(rows_per_batch, SEQ_LEN + 1)).astype(np.int64)


@dataclass
class Worker:
    """One process, no resume, nothing published."""

    folder: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    threads: int = 1
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def resume_dir(self) -> Path | None:
        return None

    def save(self, step: int, write: Callable[[Path], None], **_: Any) -> None:
        raise AssertionError(f"a checkpoint at step {step} of {N_STEPS}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


def initial(config: ModelConfig) -> LM:
    """Norms 1, a router bias of -1 for the last expert, balancing biases 0, all else normal."""
    model = LM(config).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1)
        elif name.endswith("_bias"):
            parameter.data.zero_()
            if name.endswith("router_bias"):
                parameter.data[-1] = -1
        else:
            std = 0.5 if name.endswith(("weight", "router")) else 0.25
            draw = np.random.RandomState(child_seed(0, name) % 2**32).standard_normal(tuple(parameter.shape))
            parameter.data.copy_(std * torch.from_numpy(draw))
    return model


def figures(name: str) -> dict[str, list[float]]:
    """Loss and gradient norm of every step of one run."""
    config, phase = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        _, progress = train(initial(config), Tokens(), phase, Worker(Path(folder)), Pace(micro_batch_rows=4))
    assert [entry["step"] for entry in progress.history] == list(range(1, N_STEPS + 1))
    return {figure: [entry[figure] for entry in progress.history] for figure in FIGURES}


def fingerprint() -> str:
    """What decides the last bit: torch, the processor and its instructions, threads."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    model = next((line for line in text.splitlines() if line.startswith("model name")), text)
    processor = hashlib.sha256(model.encode()).hexdigest()[:8]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()} {capability}, processor {processor}, 1 thread"


def write() -> None:
    runs = {name: figures(name) for name in RUNS}
    FILE.write_text(json.dumps({"fingerprint": fingerprint(), "runs": runs}, indent=1) + "\n")
