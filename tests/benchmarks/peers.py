"""`python -m tests.benchmarks.peers`: training steps of BTX and BAM beside transformers' models that compute the same.

Both sides: the same weights (checked by their logits before anything is timed), the same tokens, the mean next-token
loss and nothing else, bf16 with the same optimizer and its float32 masters. Theirs is timed under several settings, one
step of each in turn with ours; the ratio is over its fastest. The result is `.bench/peers.json`. No figure is asserted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.lm import LM
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from tests.benchmarks import peer_models
from tests.benchmarks.peer_models import Setting
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import Work, entry, interleaved, ratios

SIZES = {
    "quickstart": ModelConfig(4096, 128, 4, 4, 4, 352, 256),
    "d512": ModelConfig(4096, 512, 6, 8, 8, 1408, 256),
}
BATCH = 8


@dataclass(frozen=True)
class Peer:
    row: str
    config: Callable[[ModelConfig], ModelConfig]
    settings: tuple[Setting, ...]
    """The first is the best one found so far, with which the logits are compared."""


PEERS = {
    "btx": Peer("btx_over_cohere2_moe", peer_models.btx, (("eager", "sdpa"), ("grouped_mm", "sdpa"))),
    "bam": Peer("bam_over_composition", peer_models.bam, (("eager", "sdpa"), ("grouped_mm", "sdpa"))),
}


def phase_of(config: ModelConfig) -> TrainConfig:
    shares, batch = {"a": 1.0}, BATCH * config.max_seq_len
    return TrainConfig(10**6, batch, 1e-4, shares, config.max_seq_len, load_balancing_coef=0.0, z_loss_coef=0.0)


def our_step(model: LM, rows: np.ndarray) -> Work:
    phase = phase_of(model.config)
    optimizer = Optimizer(model.train(), phase)

    def step() -> None:
        accumulate_gradient(model, optimizer, rows, phase, BATCH)
        optimizer.step(1e-4)

    return step


def their_step(model: nn.Module, rows: np.ndarray, phase: TrainConfig) -> Work:
    """Their own loss of shifted labels, which covers one position fewer than ours: no advantage of ours."""
    optimizer = Optimizer(model.train(), phase)
    tokens = torch.from_numpy(rows[:, :-1])

    def step() -> None:
        model(tokens, labels=tokens).loss.backward()
        optimizer.accumulate()
        optimizer.step(1e-4)

    return step


def measure(size: str, name: str, rounds: int) -> dict[str, Any]:
    """One pair of models: its distance, its times and its entry of the table."""
    peer = PEERS[name]
    config = peer.config(SIZES[size])
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, config.max_seq_len + 1))
    works: dict[str, Work] = {}
    for setting in peer.settings:
        ours = peer_models.our_model(config)
        theirs = peer_models.public_model(ours, setting)
        differ = peer_models.require_equal(ours, theirs, torch.from_numpy(rows[:2, :-1]))
        works["ours"] = our_step(ours, rows)
        works[" ".join(setting)] = their_step(theirs, rows, phase_of(config))
    times = interleaved(works, rounds)
    best = min((each for each in times if each != "ours"), key=lambda each: statistics.median(times[each]))
    note = f"{size}; theirs {best}; logits equal to {differ['float32']:.0e} in float32"
    note += f", {differ['bf16']:.1%} off in bf16 (theirs {differ['their bf16']:.1%})"
    medians = {each: statistics.median(found) for each, found in times.items()}
    return {
        "size": size,
        "model": name,
        "logits_differ": differ,
        "step_s": {each: {"min": min(times[each]), "median": medians[each], "max": max(times[each])} for each in times},
        "tokens_per_s": {each: BATCH * config.max_seq_len / median for each, median in medians.items()},
        "table": entry(peer.row, ratios(times[best], times["ours"]), "ratio", note),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--model", choices=PEERS, action="append")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    found, table = [], []
    print(f"{'size':<12}{'model':<7}{'tokens/s: ours':>15}{'theirs, each setting':>52}{'ratio':>8}")
    for size in given.size or SIZES:
        for name in given.model or PEERS:
            one = measure(size, name, given.rounds)
            table.append(one.pop("table"))
            found.append(one)
            speeds = one["tokens_per_s"]
            theirs = ", ".join(f"{each} {speeds[each]:,.0f}" for each in speeds if each != "ours")
            shown = f"{speeds['ours']:>15,.0f}{theirs:>52}{table[-1]['value']:>8.2f}"
            print(f"{size:<12}{name:<7}{shown}   {table[-1]['low']:.2f} to {table[-1]['high']:.2f}", flush=True)
    write_result("peers", {"threads": torch.get_num_threads(), "models": found, "table": table}, given.out)


if __name__ == "__main__":
    main()
