"""On a GPU: the study's small models, whether a run repeats bit for bit, and shards by NCCL with one rank."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bam_core.config import ModelConfig
from bam_core.nn import paper
from bam_core.nn.losses import linear_next_token_loss, load_balancing_loss, router_z_loss
from bam_core.train.layers import compile_layers
from bam_core.train.optim import Optimizer
from bam_core.train.sharded import shard
from tests.benchmarks.gpu_kit import Bench, Figures, seconds, spread, top_kernels
from tests.benchmarks.gpu_steps import Trainer, deterministic

STUDY = ModelConfig(4096, d_model=160, n_layers=4, n_heads=5, n_kv_heads=5, d_ff=448, max_seq_len=128)
"""As in recipes/study/base.yaml."""
MODELS = {"dense": STUDY, "bam": paper.bam(dense=STUDY), "btx_top3of6": paper.btx(6, 3, dense=STUDY)}
ROWS = 32


def study_config(bench: Bench, name: str) -> ModelConfig:
    return replace(MODELS[name], max_seq_len=16) if bench.tiny else MODELS[name]


def trainer(bench: Bench, name: str) -> Trainer:
    return Trainer(study_config(bench, name), bench.device, 4 if bench.tiny else ROWS, ROWS)


def small(name: str, compiled: bool = False) -> Callable[[Bench], Figures]:
    """Steps of 4096 tokens, all rows at once: as the loop runs them, and their passes as one CUDA graph."""

    def work(bench: Bench) -> Figures:
        one = trainer(bench, name)
        if compiled:
            torch._dynamo.reset()
            compile_layers(one.model, bench.device)
        started = time.perf_counter()
        one.step()
        first_s = time.perf_counter() - started
        times = seconds(bench, one.step, 3 if bench.tiny else 30, 3)
        tokens = one.phase.batch_tokens
        found = spread(times) | {"tokens_per_s": tokens / statistics.median(times), "first_step_s": first_s}
        if compiled or not bench.on_gpu:
            return found
        found["profile"] = top_kernels(one.step)
        try:
            replayed = statistics.median(seconds(bench, graphed(one), 30, 3))
            found |= {"graph_s": replayed, "graph_tokens_per_s": tokens / replayed}
        except Exception as error:
            found["graph_failed"] = f"{type(error).__name__}: {error}"[:800]
        return found

    return work


def graphed(one: Trainer) -> Callable[[], None]:
    """A step whose forward and backward pass are one CUDA graph; without the sums that a run publishes."""
    tokens = torch.from_numpy(one.rows).cuda()

    def micro_batch() -> None:
        output = one.model(tokens[:, :-1])
        head = one.model.head or one.model.embed
        loss = linear_next_token_loss(output.hidden_BTD, head.weight, tokens[:, 1:]) / one.phase.batch_tokens
        ffn = [layer.ffn for layer in output.routing if layer.ffn is not None]
        if ffn:
            loss = loss + 0.01 * load_balancing_loss(ffn) + 0.001 * router_z_loss(ffn)
        loss.backward()
        one.optimizer.accumulate()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            micro_batch()
    torch.cuda.current_stream().wait_stream(side)
    one.optimizer.step(0.0)  # so that the graph overwrites the gradient, as a step's first micro-batch does
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        micro_batch()

    def step() -> None:
        graph.replay()
        for group in one.optimizer.flat:
            group._is_clear = False
        one.optimizer.step(1e-4)

    return step


def repeats(bench: Bench) -> Figures:
    """Whether two runs of 30 steps give the same bits: as they are, and with torch's deterministic algorithms."""
    n_steps = 3 if bench.tiny else 30
    found: Figures = {}
    for how in ("default", "deterministic"):
        with deterministic(how == "deterministic"):
            for name in MODELS:
                started = time.perf_counter()
                one, two = (run(bench, name, n_steps) for _ in range(2))
                found[f"{name}_{how}_same_losses"] = one[0] == two[0]
                found[f"{name}_{how}_same_weights"] = torch.equal(one[1], two[1])
                found[f"{name}_{how}_s"] = time.perf_counter() - started
    return found


def run(bench: Bench, name: str, n_steps: int) -> tuple[list[float], Tensor]:
    one = trainer(bench, name)
    losses = [one.step() for _ in range(n_steps)]
    return losses, torch.cat([group.master for group in one.optimizer.flat])


def sharded(bench: Bench) -> Figures:
    """FSDP2 over NCCL with one rank: three steps, beside the same steps without shards."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        backend = "nccl" if bench.on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{Path(folder) / 'meet'}", rank=0, world_size=1)
        try:
            found: Figures = {"backend": backend}
            if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):  # older than the torch that is pinned
                FSDPModule.set_reduce_scatter_unused_params = void  # one rank has nothing to meet for
            for name in MODELS:
                plain, shards = trainer(bench, name), trainer(bench, name)
                shard(shards.model, 1, bench.device, torch.bfloat16, torch.float32, None)
                shards.optimizer = Optimizer(shards.model, shards.phase)
                expected, losses = ([one.step() for _ in range(3)] for one in (plain, shards))
                apart = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
                found[f"{name}_losses_apart"] = apart
                found[f"{name}_loss"] = losses[-1]
            return found
        finally:
            dist.destroy_process_group()


def void(*_: object, **__: object) -> None:
    pass
