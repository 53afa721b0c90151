"""Routers: fitted on text of each domain, what they send where, and the drawing of it."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from upcycle import CONFIG, dense

import bam
from bam_core import VARIANTS, FFNSpec, upcycle_models
from bam_core.config import FFNExperts
from bam_core.nn.routing import route

DOMAINS = ("general", "law", "code")


def text(domain: str, n_rows: int = 8) -> torch.Tensor:
    """tokens_BT: rows in a third of the vocabulary that is the domain's own, in the place of real text."""
    generator = torch.Generator().manual_seed(len(domain))
    first = 33 * DOMAINS.index(domain)
    return torch.randint(first, first + 33, (n_rows, CONFIG.max_seq_len + 1), generator=generator)


def main() -> None:
    # A router is a pure function of its logits.
    routing = route(torch.tensor([[2.0, 0.0, 1.0]]), FFNExperts(n_experts=3, top_k=2))
    weights = [f"{weight:.3f}" for weight in routing.weights_NK[0].tolist()]
    print(f"experts {routing.experts_NK[0].tolist()}, weights {', '.join(weights)}")

    # Of a mixture: `centroid` starts each router from the mean of what it reads in each domain.
    variant = replace(VARIANTS["btx"], router_init="centroid", ffn=FFNSpec(scale="gate"))
    rows = {domain: text(domain) for domain in DOMAINS}
    made = upcycle_models({domain: dense(number) for number, domain in enumerate(DOMAINS)}, variant, rows=rows)
    for number, layer in enumerate(made.step0["layers"]):
        print(f"layer {number}: the best-scored expert is the domain's own for {layer['ffn_accuracy']:.0%} of tokens")

    figures = bam.plot_routing(made.model, {domain: text(domain, n_rows=4) for domain in DOMAINS})
    print(figures)  # in a notebook, `figures` by itself shows the drawings
    if len(sys.argv) > 1:
        figures["ffn"].save(sys.argv[1])


if __name__ == "__main__":
    main()
