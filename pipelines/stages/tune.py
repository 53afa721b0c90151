"""`tune.<name>`: a search for the best values of some of the recipe's numbers.

Each trial is a short training like that of the stage `of`: the same loop, start and text, with values of its own,
judged by held-out loss. `best.json` has the values that later stages use, `trials.json` and `trials.parquet` what every
trial reached. No clock reading is in them: the seconds of the trials are metrics of the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bam_core.checkpoint import read_config
from bam_core.config import ModelConfig, TrainConfig
from bam_core.data.shards import ShardedRows
from bam_core.documents import read_json
from bam_core.errors import TrainingDiverged
from bam_core.evaluate.perplexity import score
from bam_core.nn.costs import training_flops
from bam_core.nn.lm import LM
from bam_core.protocols import Halving, Metrics, StageContext, Trained, TrainWorker, Trial, TrialEnd
from bam_core.train.loop import Pace, train
from bam_core.train.search import Space, best, losses_as_metrics, rung_steps, sample, with_values
from pipelines.stages.feeding import feed
from pipelines.stages.training import BEST_FILE, open_model, tuned_phase

LOSSES_FILE = "losses.json"
"""In a trial's checkpoint: what was judged before it."""


def run(context: StageContext) -> Mapping[str, Any]:
    assert context.searcher is not None, "a search needs a searcher"
    config, phase = context.config, tuned_phase(context)
    spaces = {key: Space.from_json(space) for key, space in config["space"].items()}
    values = [sample(spaces, config["seed"], index) for index in range(config["trials"])]
    phases = [_phase(phase, config["fields"], chosen) for chosen in values]
    trials = [_trial(context, index, trying) for index, trying in enumerate(phases)]
    halving = Halving(config["rungs"], config["reduction"], context.runtime.get("max_trials"))
    ends = context.searcher.run(trial_loop, trials, halving, context.resources, partial(_tell, context, len(trials)))
    found = best(ends)
    if found is None:
        raise TrainingDiverged(f"each of {len(ends)} trials diverged; search a lower range")
    tried = [_tried(end, chosen, trying, config) for end, chosen, trying in zip(ends, values, phases, strict=True)]
    _write(context.out, config, tried, ends.index(found))
    return _metrics(context, ends, tried, found)


def _phase(phase: Mapping[str, Any], fields: Mapping[str, str], values: Mapping[str, float]) -> TrainConfig:
    return TrainConfig.from_json(with_values(phase, {fields[key]: value for key, value in values.items()}), "trial")


def _trial(context: StageContext, index: int, phase: TrainConfig) -> Trial:
    config = {
        "start": _start(context.config),
        "phase": phase.identity(),
        "pace": dict(context.runtime.get("pace", {})),
        "steps": _steps(phase, context.config),
        "domains": list(context.config["domains"]),
        "eval_tokens": context.config["eval_tokens"],
    }
    # The key too: of two searches at once, no trial has the name of another's.
    content = json.dumps([context.key, config | {"pace": {}}], sort_keys=True)
    return Trial(f"trial-{index:03d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}", config)


def _start(config: Mapping[str, Any]) -> dict[str, Any]:
    if "from" in config:
        return {"from": config["from"]}
    if "init_seed" in config:
        return {"init_seed": config["init_seed"], "model": config["model"]}
    return {"from": "mix" if config["of"].startswith("train.") else "seed"}


def _steps(phase: TrainConfig, config: Mapping[str, Any]) -> list[int]:
    return list(rung_steps(phase.n_steps, config["rungs"], config["reduction"]))


def trial_loop(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """What every rank of a trial runs. It leaves no files: what counts is how it was judged."""
    phase = TrainConfig.from_json(config["phase"])
    model, _ = open_model(worker, config["start"])
    judged = _Judge(worker, model, config)
    pace = Pace(**config["pace"], judged_at=judged.steps[:-1])
    batches, adapts = feed(worker, phase, pace)
    train(model, batches, phase, judged, pace, judge=adapts)
    return Trained({"losses": [*judged.losses, judged.loss()]}, _write_nothing)


def _write_nothing(folder: Path) -> None:
    pass


class _Judge:
    """The worker, with a look at held-out text where the checkpoint of a rung is saved."""

    def __init__(self, worker: TrainWorker, model: LM, config: Mapping[str, Any]) -> None:
        self._worker, self._model, self._tokens = worker, model, config["eval_tokens"]
        self._rows = {domain: ShardedRows(worker.inputs[f"data.{domain}"] / "valid") for domain in config["domains"]}
        self.steps: list[int] = config["steps"]
        self.rank, self.world_size, self.inputs = worker.rank, worker.world_size, worker.inputs
        self.device, self.threads = worker.device, worker.threads
        resumed = worker.resume_dir()
        self.losses: list[float] = read_json(resumed / LOSSES_FILE)["losses"] if resumed else []

    def loss(self) -> float:
        """Mean over the domains of the mean negative log likelihood, as the model is now.

        Raises TrainingDiverged where it is not finite.
        """
        totals = [score(self._model, rows, self._tokens)[0].nll for rows in self._rows.values()]
        self._model.train()
        mean = sum(totals) / len(totals)
        if not isfinite(mean):
            raise TrainingDiverged(f"the held-out loss is {mean}; lower the learning rate")
        return mean

    def resume_dir(self) -> Path | None:
        return self._worker.resume_dir()

    def log(self, step: int, metrics: Metrics) -> None:
        self._worker.log(step, metrics)

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        at_rung = step in self.steps[:-1]
        if at_rung:
            self.losses.append(self.loss())
        losses = json.dumps({"losses": self.losses})

        def write_both(folder: Path) -> None:
            write(folder)
            if self.rank == 0:
                (folder / LOSSES_FILE).write_text(losses)

        judged = losses_as_metrics(self.losses) if at_rung else metrics
        self._worker.save(step, write_both, metrics=judged, sharded=sharded)


def _tell(context: StageContext, n_trials: int, ends: Sequence[TrialEnd]) -> None:
    found = best(ends)
    context.log(len(ends), {"total_steps": n_trials, **({"loss": found.losses[-1]} if found else {})})


def _tried(end: TrialEnd, values: Mapping[str, float], phase: TrainConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was and reached. train_tokens: up to its last rung."""
    steps = _steps(phase, config)
    return {
        "name": end.name,
        "values": dict(values),
        "status": end.status,
        "rungs": [{"step": step, "loss": loss} for step, loss in zip(steps, end.losses, strict=False)],
        "train_tokens": steps[len(end.losses) - 1] * phase.batch_tokens if end.losses else 0,
    }


def _write(out: Path, config: Mapping[str, Any], tried: Sequence[Mapping[str, Any]], chosen: int) -> None:
    best_one = tried[chosen]
    found = {
        "values": best_one["values"],
        "metric": "mean held-out loss of " + ", ".join(config["domains"]),
        "loss": best_one["rungs"][-1]["loss"],
        "trial": chosen,
    }
    _write_json(out / BEST_FILE, found)
    _write_json(out / "trials.json", {"stage": config["of"], "space": dict(config["space"]), "trials": list(tried)})
    rows = [
        {
            "trial": index,
            "status": trial["status"],
            "step": trial["rungs"][-1]["step"] if trial["rungs"] else None,
            "loss": trial["rungs"][-1]["loss"] if trial["rungs"] else None,
            "train_tokens": trial["train_tokens"],
            **trial["values"],
        }
        for index, trial in enumerate(tried)
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "trials.parquet")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _metrics(
    context: StageContext, ends: Sequence[TrialEnd], tried: Sequence[Mapping[str, Any]], found: TrialEnd
) -> dict[str, Any]:
    counts = {f"n_{status}": sum(end.status == status for end in ends) for status in ("stopped", "diverged")}
    model = (
        ModelConfig.from_json(context.config["model"])
        if "model" in context.config
        else read_config(context.inputs[_start(context.config)["from"]])
    )
    tokens = sum(trial["train_tokens"] for trial in tried)
    return {
        "best_loss": found.losses[-1],
        "best_trial": ends.index(found),
        "n_trials": len(ends),
        **counts,
        "train_tokens": tokens,
        "train_flops": training_flops(model, tokens, context.config["phase"]["seq_len"]),
        "trial_s": {f"{index:03d}": round(end.seconds, 3) for index, end in enumerate(ends)},
    }
