"""What a training step on a GPU is made of, each part alone: ceilings, attention, the loss, grouped products."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.nn import losses, moe
from bam_core.nn.attention import attend
from tests.benchmarks.gpu_kit import BACKENDS, Bench, Figures, Work, attention_by, seconds, spread


def randn(bench: Bench, *shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, device=bench.device).bfloat16().requires_grad_(grad)


def ceilings(bench: Bench) -> Figures:
    """The device's own bf16 matrix product on random data, and its copy: bytes read and written."""
    n = 256 if bench.tiny else 8192
    a, b = randn(bench, n, n), randn(bench, n, n)
    product = [2 * n**3 / s for s in seconds(bench, lambda: a @ b, 20, 5)]
    source = torch.empty(2**20 if bench.tiny else 2**32, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    copy = [2 * source.numel() / s for s in seconds(bench, lambda: target.copy_(source), 10)]
    rows, width, vocab = (64, 32, 1000) if bench.tiny else (8192, 1024, 256_000)
    h, w = randn(bench, rows, width), randn(bench, vocab, width)
    head = [2 * rows * width * vocab / s for s in seconds(bench, lambda: F.linear(h, w), 5)]
    return {
        "product_flop_per_s": statistics.median(product),
        "product_min": min(product),
        "product_max": max(product),
        "copy_bytes_per_s": statistics.median(copy),
        "head_product_flop_per_s": statistics.median(head),
        **device_words(bench),
    }


def device_words(bench: Bench) -> Figures:
    if not bench.on_gpu:
        return {}
    properties = torch.cuda.get_device_properties(0)
    words = {"memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count}
    return words | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def forward_backward(output: Callable[[], Tensor], inputs: list[Tensor]) -> Work:
    direction = torch.randn_like(output())

    def work() -> None:
        torch.autograd.grad(output(), inputs, direction)

    return work


def attention(bench: Bench) -> Figures:
    """One causal attention of 8192 positions, forward and backward, as dense (8 heads) and as BAM (32) run it."""
    n_time, channels = (64, 16) if bench.tiny else (8192, 128)
    found: Figures = {}
    for heads in (8, 32):
        q, k, v = (randn(bench, 1, n_time, heads, channels, grad=True) for _ in range(3))
        flops = 3 * 2 * 2 * heads * channels * n_time * (n_time + 1) / 2
        exact = attend(q[:, :128].detach().float(), k[:, :128].detach().float(), v[:, :128].detach().float())
        for name in BACKENDS:
            try:
                with attention_by(name, alone=True), torch.no_grad():
                    apart = (attend(q, k, v)[:, :128].float() - exact).norm() / exact.norm()
                with attention_by(name, alone=True):
                    times = seconds(bench, forward_backward(lambda q=q, k=k, v=v: attend(q, k, v), [q, k, v]), 5)
            except RuntimeError as error:
                found[f"{name}_{heads}_error"] = str(error)[:300]
                continue
            found[f"{name}_{heads}_tflop_per_s"] = flops / statistics.median(times) / 1e12
            found[f"{name}_{heads}_error_of_output"] = float(apart)
    speeds = {name: found.get(f"{name}_32_tflop_per_s", 0.0) for name in BACKENDS}
    return found | {"best": max(speeds, key=lambda name: speeds[name]) if bench.on_gpu else None}


def loss(bench: Bench) -> Figures:
    """The head and its loss on one row of 8192 tokens, forward and backward, beside the three products alone.

    logits: they are kept. linear: they are not. eager: in chunks. Errors of the gradient are against float32.
    """
    rows, width, vocab = (64, 32, 1000) if bench.tiny else (8192, 1024, 256_000)
    h, w = randn(bench, rows, width, grad=True), (randn(bench, vocab, width) * 0.02).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device=bench.device)
    found: Figures = {"three_products_s": products_alone(bench, h.detach(), w.detach())}
    few = slice(0, 256)
    exact = h.detach()[few].float().requires_grad_()
    F.cross_entropy(F.linear(exact, w.detach().float()), targets[few], reduction="sum").backward()
    assert exact.grad is not None
    for name in ("linear", "linear_eager", "logits", "logits_eager"):

        def make(name: str = name) -> tuple[Tensor, ...]:
            if name.startswith("linear"):
                return torch.autograd.grad(losses.linear_next_token_loss(h, w, targets), [h, w])
            return torch.autograd.grad(losses.next_token_loss(F.linear(h, w), targets), [h, w])

        try:
            with compiling(not name.endswith("eager")):
                apart = (make()[0][few].float() - exact.grad).norm() / exact.grad.norm()
                found[f"{name}_error_of_gradient"] = float(apart)
                found |= timed(bench, name, make)
        except Exception as error:
            found[f"{name}_failed"] = f"{type(error).__name__}: {error}"[:800]
    return found


def products_alone(bench: Bench, h_ND: Tensor, w_VD: Tensor) -> float:
    """Seconds of the head's products: forward, and one for each gradient."""
    logits_NV = F.linear(h_ND, w_VD)
    times = seconds(bench, lambda: (F.linear(h_ND, w_VD), logits_NV @ w_VD, logits_NV.mT @ h_ND), 3)
    return statistics.median(times)


class compiling:  # noqa: N801  a context
    """Whether the loss on a GPU is compiled."""

    def __init__(self, on: bool) -> None:
        self._on, self._before = on, losses.can_compile

    def __enter__(self) -> None:
        if not self._on:
            losses.can_compile = lambda: False  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        losses.can_compile = self._before


def timed(bench: Bench, name: str, work: Work) -> Figures:
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = seconds(bench, work, 3)
    found: Figures = {f"{name}_s": statistics.median(times)}
    if bench.on_gpu:
        found[f"{name}_peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def grouped(bench: Bench) -> Figures:
    """Three matrices of FFN experts on 32k tokens, forward and backward: the kernel and a product for each expert."""
    n_tokens, width, hidden = (64, 16, 32) if bench.tiny else (32_768, 1024, 2048)
    found: Figures = {}
    for n_experts, top_k in ((4, 1), (6, 3)):
        n = n_tokens * top_k
        counts = torch.bincount(torch.randint(0, n_experts, (n,), device=bench.device), minlength=n_experts)
        x, w = randn(bench, n, width, grad=True), randn(bench, n_experts, hidden, width, grad=True)
        flops = 3 * 2 * n * width * hidden
        products: dict[str, Any] = {"kernel": moe.grouped_kernel, "loop": loop, "dense": one}
        for name, product in products.items():
            work = forward_backward(lambda product=product, x=x, w=w, c=counts: product(x, w, c), [x, w])
            times = seconds(bench, work, 5)
            found[f"{name}_{n_experts}_top{top_k}"] = spread(times) | {"tflop_per_s": flops / min(times) / 1e12}
    return found


def loop(x_ND: Tensor, w_ERD: Tensor, counts_E: Tensor) -> Tensor:
    groups = torch.split(x_ND, counts_E.tolist())
    return torch.cat([F.linear(x, w) for x, w in zip(groups, w_ERD.unbind(), strict=True)])


def one(x_ND: Tensor, w_ERD: Tensor, _: Tensor) -> Tensor:
    """As many FLOPs in one product: what a dense FFN takes."""
    return F.linear(x_ND, w_ERD[0])
