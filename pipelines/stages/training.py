"""The one training loop behind `seed`, `expert.*`, `train.*` and `dense`: open a model, train it, write a model folder.

An expert's own worker group branches the seed: it opens the seed's weights and trains them; no copy is made in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_core.checkpoint import load_model, model_card, write_model
from bam_core.config import ModelConfig, TrainConfig
from bam_core.data.mixture import DomainMixture
from bam_core.data.shards import ShardedRows
from bam_core.nn.costs import params_active, params_total, training_flops
from bam_core.nn.lm import LM, init_weights
from bam_core.protocols import StageContext, Trained, TrainWorker
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.state import Progress

HISTORY_FILE = "training.json"


def run_training(context: StageContext, start: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Train on the stage's worker group and leave a model folder in `context.out`. Returns the stage's metrics.

    start: `{"init_seed": n, "model": config}` for a fresh model or `{"from": role}` for an input's weights.
    what: one sentence for the model card.
    """
    config = {
        "start": dict(start),
        "phase": dict(context.config["phase"]),
        "pace": dict(context.runtime.get("pace", {})),
        "stage": context.stage,
        "key": context.key,
        "what": what,
        "parents": {role: [record.stage, record.key] for role, record in context.records.items()},
        "ancestors": _ancestor_costs(context),
    }
    return context.trainer.fit(train_loop, config, context.resources, context.out)


def train_loop(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """What every rank runs."""
    phase = TrainConfig.from_json(config["phase"])
    model, tokenizer = _open_model(worker, config["start"])
    domains = [domain for domain, share in phase.shares.items() if share > 0]
    rows = {domain: ShardedRows(worker.inputs[f"data.{domain}"] / "train") for domain in domains}
    batches = DomainMixture(rows, phase.shares, phase.seed)
    optimizer, progress = train(model, batches, phase, worker, Pace(**config["pace"]))
    figures = _figures(model.config, phase, progress, config["ancestors"])
    writer = _ModelWriter(model.config, optimizer, progress, tokenizer, config, figures)
    return Trained(figures, writer)


def _open_model(worker: TrainWorker, start: Mapping[str, Any]) -> tuple[LM, Path]:
    if "from" in start:
        folder = worker.inputs[start["from"]]
        return load_model(folder), folder / "tokenizer.json"
    model = LM(ModelConfig.from_json(start["model"]))
    init_weights(model, start["init_seed"])
    return model, worker.inputs["tokenizer"] / "tokenizer.json"


def _figures(
    model: ModelConfig, phase: TrainConfig, progress: Progress, ancestors: Mapping[str, float]
) -> dict[str, Any]:
    tokens = phase.n_steps * phase.batch_tokens
    flops = training_flops(model, tokens, phase.seq_len)
    return {
        "loss": progress.history[-1]["loss"],
        "train_tokens": tokens,
        "train_flops": flops,
        "lineage_tokens": tokens + ancestors["tokens"],
        "lineage_flops": flops + ancestors["flops"],
        "params_total": params_total(model),
        "params_active": params_active(model),
    }


def _ancestor_costs(context: StageContext) -> dict[str, float]:
    """Tokens and FLOPs that went into the models this stage starts from."""
    models = [record.metrics for role, record in context.records.items() if not role.startswith("data.")]
    return {
        "tokens": sum(metrics.get("lineage_tokens", 0) for metrics in models),
        "flops": sum(metrics.get("lineage_flops", 0) for metrics in models),
    }


@dataclass(frozen=True)
class _ModelWriter:
    """Writes the model folder: master weights, so the next phase starts from what was trained, not its rounding."""

    model: ModelConfig
    optimizer: Optimizer
    progress: Progress
    tokenizer: Path
    config: Mapping[str, Any]
    figures: Mapping[str, Any]

    def __call__(self, folder: Path) -> None:
        phase = self.config["phase"]
        card = model_card(
            name=self.config["stage"],
            what=self.config["what"],
            config=self.model,
            parents={role: tuple(parent) for role, parent in self.config["parents"].items()},
            facts={
                "tokens trained in this stage": f"{self.figures['train_tokens']:,}",
                "tokens behind it in all": f"{self.figures['lineage_tokens']:,}",
                "data": ", ".join(f"{domain} {share:.0%}" for domain, share in phase["shares"].items() if share > 0),
                "final training loss": f"{self.figures['loss']:.4f}",
                "key": self.config["key"],
            },
        )
        write_model(folder, self.model, self.optimizer.masters(), tokenizer=self.tokenizer, card=card)
        training = {"history": self.progress.history, "figures": dict(self.figures), "phase": dict(phase)}
        (folder / HISTORY_FILE).write_text(json.dumps(training, indent=1) + "\n")
