"""A whole run in figures, close to a quickstart's: four domains, seed, three experts, two baselines, two mixtures."""

from __future__ import annotations

from math import exp
from random import Random
from typing import Any

from pipelines.report import ReportInputs

DOMAINS = ("general", "code", "law", "math")
EXPERTS = ("seed", "expert.code", "expert.law", "expert.math")
TOKENS = {"seed": 2_000_000, "expert": 1_000_000, "ensemble": 0, "mix": 0, "train": 1_000_000, "dense": 1_000_000}
PERPLEXITY = {
    "seed": (31.98, 14.62, 12.92, 9.12),
    "expert.code": (49.50, 7.71, 18.83, 8.77),
    "expert.law": (87.82, 33.45, 6.53, 20.79),
    "expert.math": (97.61, 26.78, 30.43, 3.67),
    "dense": (28.4, 11.87, 8.41, 4.44),
    "ensemble": (31.80, 8.70, 7.20, 4.10),
    "mix.bam": (61.02, 24.45, 16.04, 8.31),
    "mix.btx": (96.72, 33.78, 26.63, 15.77),
    "train.bam": (26.02, 9.45, 7.04, 3.81),
    "train.btx": (28.72, 10.78, 7.63, 4.07),
}


def fake_run(**changes: Any) -> ReportInputs:
    """The run, with some inputs replaced."""
    made = [name for name in PERPLEXITY if name != "ensemble"]
    stages = ["tokenizer", *(f"data.{d}" for d in DOMAINS), *made, "evaluate"]
    parts: dict[str, Any] = {
        "name": "quickstart",
        "perplexity": {"models": {name: _scores(name) for name in sorted(PERPLEXITY)}},
        "routing": {"models": {n: _routing(n) for n in ("mix.bam", "mix.btx", "train.bam", "train.btx")}},
        "training": {name: _history(name) for name in made if not name.startswith("mix.")},
        "mixes": {name: _mix(name) for name in ("mix.bam", "mix.btx")},
        "costs": [_cost(stage) for stage in stages],
        "lineage": _lineage(),
        "domains": DOMAINS,
    }
    return ReportInputs(**(parts | changes))


def _sizes(name: str) -> tuple[int, int, int]:
    """Parameters in all, active, FLOPs per token."""
    if name.endswith(".bam"):
        return 3_281_536, 1_659_520, 4_923_392
    if name.endswith(".btx"):
        return 2_888_320, 1_262_208, 2_551_808
    if name == "ensemble":
        return 5_040_640, 5_040_640, 10_190_848
    return 1_260_160, 1_260_160, 2_547_712


def _scores(name: str) -> dict[str, Any]:
    total, active, flops = _sizes(name)
    tokens = TOKENS[name.split(".")[0]]
    scores = dict(zip(DOMAINS, PERPLEXITY[name], strict=True))
    parents = 0 if name == "seed" else 2_000_000 if name.startswith(("expert", "dense")) else 5_000_000
    experts = {"experts": list(EXPERTS)} if name == "ensemble" else {}
    return experts | {
        "domains": {
            domain: {"perplexity": p, "nll": p**0.3, "tokens": 100_096, "bits_per_byte": 0.31 * p**0.4}
            for domain, p in sorted(scores.items())
        },
        "average_perplexity": sum(scores.values()) / 4,
        "params_total": total,
        "params_active": active,
        "flops_per_token": flops,
        "train_tokens": tokens,
        "train_flops": 3 * flops * tokens,
        "lineage_tokens": tokens + parents,
        "lineage_flops": 3 * flops * tokens + 3 * 2_547_712 * parents,
        "seeds": [0],
    }


def _history(name: str) -> list[dict[str, float]]:
    kind = name.split(".")[0]
    rng = Random(name)
    start, end = {"seed": (8.3, 2.9), "expert": (2.9, 2.1 - 0.3 * rng.random())}.get(kind, (3.3, 2.3))
    end -= 0.12 if name == "train.bam" else 0.0
    rows = []
    for i in range(1, 121):
        loss = end + (start - end) * exp(-i / 18) + rng.gauss(0, 0.045)
        row = {"step": 4 * i, "tokens": TOKENS[kind] * i // 120, "lr": 1e-3 * (1 - i / 133), "loss": loss}
        row |= {"grad_norm": 0.5 + rng.random() / 10, "load_balancing_loss": 0.0, "z_loss": 0.0}
        if kind == "train":
            row |= {"load_balancing_loss": 1.05 + 0.9 * exp(-i / 20) + rng.random() / 50, "z_loss": 2.1}
        rows.append(row)
    return rows


def _routing(name: str) -> dict[str, Any]:
    rng = Random(name)
    domains = {d: _routers(place, name, rng) for place, d in enumerate(DOMAINS)}
    return {
        "layers": 4,
        "experts": list(DOMAINS),
        "attention_experts": list(DOMAINS) if name.endswith(".bam") else [],
        "ffn_experts": list(DOMAINS),
        "ffn_soft_layers": [],
        "domains": dict(sorted(domains.items())),
    }


def _routers(own: int, name: str, rng: Random) -> dict[str, Any]:
    sharp = 2.2 if name.startswith("train") else 0.2

    def gates(pull: float) -> list[list[float]]:
        rows = [[exp(rng.random() + (pull if i == own else 0)) for i in range(4)] for _ in range(4)]
        return [[value / sum(row) for value in row] for row in rows]

    entropy = [rng.uniform(0.3, 0.9) for _ in range(4)]
    ffn = {"mean_gate": gates(sharp / 2), "fraction": gates(sharp), "entropy": entropy}
    soft = name.endswith(".bam")
    return {"attention": {"mean_gate": gates(sharp / 2), "entropy": entropy} if soft else None, "ffn": ffn}


def _mix(name: str) -> dict[str, Any]:
    stacked_attention = name == "mix.bam"
    ops = {"embed.weight": "mean", "norm.weight": "mean"}
    for layer in range(4):
        for part in ("w_q", "w_k", "w_v", "w_o"):
            ops[f"blocks.{layer}.attn.{part}"] = "stack" if stacked_attention else "mean"
        for part in ("w_gate", "w_up", "w_down"):
            ops[f"blocks.{layer}.ffn.{part}"] = "stack"
        ops[f"blocks.{layer}.ffn.router"] = "fresh"
    return {
        "tensors": {name: {"op": op, "from": [], "sha256": "0" * 64} for name, op in ops.items()},
        "receipt": {
            "experts": {domain: {"max_abs_value": 9.1, "max_abs_diff": 3.1e-14} for domain in DOMAINS},
            "step0": _step_zero(name),
        },
    }


def _step_zero(name: str) -> dict[str, Any]:
    rng = Random(f"step0 {name}")
    soft = name == "mix.bam"
    experts = dict(zip(DOMAINS, EXPERTS, strict=True))
    scores = {domain: PERPLEXITY[stage] for domain, stage in experts.items()} | {"mixture": PERPLEXITY[name]}
    layers = [
        {
            "attention_gate_sum": 1.0 if soft else None,
            "attention_accuracy": rng.uniform(0.6, 0.9) if soft else None,
            "attention_condition": rng.uniform(1, 2) if soft else None,
            "ffn_gate_sum": 0.26 + layer / 100,
            "ffn_shrink": 0.26 + layer / 100,
            "ffn_accuracy": rng.uniform(0.2, 0.3),
            "ffn_condition": 7.25 if layer == 3 else rng.uniform(1, 2),
            "distance": {domain: rng.uniform(0.1, 0.3) * (layer + 1) for domain in DOMAINS},
        }
        for layer in range(4)
    ]
    return {
        "tokens_per_domain": dict.fromkeys(DOMAINS, 4096),
        "seed": "general",
        "layers": layers,
        "perplexity": {
            model: dict(zip(DOMAINS, row, strict=True)) | {"average": sum(row) / 4} for model, row in scores.items()
        },
        "warnings": [] if soft else ["ffn routers of 1 of 4 layers tell some experts apart far worse than others"],
    }


def _cost(stage: str) -> dict[str, Any]:
    if stage not in PERPLEXITY or stage.startswith("mix."):
        return {
            "stage": stage,
            "seconds": 2.4 + len(stage) / 7,
            "tokens": None,
            "train_flops": None,
            "params": None,
        }
    tokens, flops = TOKENS[stage.split(".")[0]], _sizes(stage)[2]
    seconds = flops * tokens * 3 / 150e9 + 4
    return {
        "stage": stage,
        "seconds": seconds,
        "tokens": tokens,
        "train_flops": 3 * flops * tokens,
        "params": _sizes(stage)[0],
    }


def _key(stage: str) -> str:
    return f"{Random(stage).getrandbits(256):064x}"


def _lineage() -> dict[str, Any]:
    data = {f"data.{d}": f"data.{d}" for d in DOMAINS}
    experts = ("expert.code", "expert.law", "expert.math")
    inputs: dict[str, list[str]] = {f"source.{d}": [] for d in DOMAINS}
    inputs["tokenizer"] = [f"source.{d}" for d in DOMAINS]
    inputs |= {f"data.{d}": [f"source.{d}", "tokenizer"] for d in DOMAINS}
    inputs["seed"] = ["tokenizer", *data]
    inputs |= {name: ["seed", "data.general", name.replace("expert", "data")] for name in experts}
    inputs["dense"] = ["seed", *data]
    for variant in ("bam", "btx"):
        inputs[f"mix.{variant}"] = ["seed", *experts]
        inputs[f"train.{variant}"] = [f"mix.{variant}", *data]
    inputs["evaluate"] = [*(name for name in PERPLEXITY if name != "ensemble"), *data]
    nodes = [
        {
            "stage": stage,
            "key": _key(stage),
            "digest": _key(f"digest {stage}"),
            "started": None if stage.startswith("source") else 1.8e9,
            "seconds": None if stage.startswith("source") else 12.5,
            "git_commit": None if stage.startswith("source") else "8c1f0de2f4bd53a9",
            "dirty": False,
            "packages": {} if stage.startswith("source") else {"torch": "2.13.0", "ray": "2.60.0"},
            "metrics": {},
            "tokens": None,
            "flops": None,
            "missing": False,
        }
        for stage in inputs
    ]
    edges = [
        {"from": {"stage": a, "key": _key(a)}, "to": {"stage": b, "key": _key(b)}, "role": a}
        for b, parents in inputs.items()
        for a in parents
    ]
    return {"root": {"stage": "evaluate", "key": _key("evaluate")}, "nodes": nodes, "edges": edges}
