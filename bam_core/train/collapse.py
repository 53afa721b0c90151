"""The alarm for routers that leave experts without work: who has had almost nothing, since when, and for how long.

An expert's load in a step is its part of an even share, over the global batch: of the pairs of a token and a chosen
expert, or, of a soft router, which sends every token everywhere, of the probability. An expert is starved while that is
below `collapse_min_load`, and there is an alarm once it was so in every step of `collapse_for_frac` of the run (in
`MIN_STEPS` at least). A router that sends everything to one expert starves all others, so this is what it looks like
too. Expert copies that share their tokens, and routers that know the domains from the start, give every expert of a
domain that is in the data its part, which is far above a hundredth of an even share.

A pure function of the step's loads and of what the checkpoint holds, so a resumed run raises the same alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from bam_core.config import ModelConfig, TrainConfig
from bam_core.errors import TrainingDiverged
from bam_core.train.step import BatchSums

MIN_STEPS = 10
"""No alarm for less: a batch may well have no text of a domain."""
BRANCHES: tuple[Literal["attention", "ffn"], ...] = ("attention", "ffn")
REMEDY = {
    "ffn": "raise load_balancing_coef, or start routers from text (router_init: ridge or centroid)",
    "attention": "lower the learning rate, or start routers from text (router_init: ridge or centroid)",
}

Watched = Mapping[str, Any]
"""starved: branch -> layer -> for each expert, in how many steps up to now it was starved without a break. alarms: what
was raised, each {branch, layer, expert, since, until}; steps as in the history, until: None while it goes on."""


def window(config: TrainConfig) -> int:
    """Steps without a break after which a starved expert is an alarm."""
    return max(MIN_STEPS, ceil(config.collapse_for_frac * config.n_steps))


def watch_batch(
    watched: Watched, sums: BatchSums, model: ModelConfig, step: int, config: TrainConfig
) -> dict[str, Any]:
    """`watch` on the sums of a global batch, the one of step `step`."""
    experts: dict[str, Sequence[str]] = {branch: model.expert_labels(branch) for branch in BRANCHES}
    return watch(watched, loads(sums, model, step, config), step, config, experts)


def loads(sums: BatchSums, model: ModelConfig, step: int, config: TrainConfig) -> dict[str, dict[int, list[float]]]:
    """Branch -> layer with experts -> each expert's part of an even share in this batch: 1 for all if it is even.

    A branch to which an expert was added has none until the router bias that keeps it quiet has faded.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for branch, load_LE in (("ffn", _ffn_loads(sums, model)), ("attention", sums.attention_LE)):
        at = model.ffn_at if branch == "ffn" else model.attention_at
        layers = {layer: experts for layer in range(model.n_layers) if (experts := at(layer)) is not None}
        is_fading = any(experts.router_bias for experts in layers.values())
        if layers and not (is_fading and step <= config.router_bias_frac * config.n_steps):
            even_LE = load_LE / load_LE.mean(-1, keepdim=True)
            found[branch] = dict(zip(layers, even_LE.tolist(), strict=True))
    return found


def _ffn_loads(sums: BatchSums, model: ModelConfig) -> Tensor:
    experts = [found for layer in range(model.n_layers) if (found := model.ffn_at(layer)) is not None]
    is_soft_L1 = torch.tensor([[e.top_k == e.n_experts] for e in experts], device=sums.probs_LE.device)
    return torch.where(is_soft_L1, sums.probs_LE, sums.assigned_LE) if experts else sums.assigned_LE


def watch(
    watched: Watched,
    load: Mapping[str, Mapping[int, Sequence[float]]],
    step: int,
    config: TrainConfig,
    experts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What is known after a step. step: counted from 1. experts: branch -> a name for each.

    Raises TrainingDiverged on an alarm if the config says that it stops the run.
    """
    starved: dict[str, dict[str, list[int]]] = {}
    raised: list[dict[str, Any]] = []
    alarms = [dict(alarm) for alarm in watched.get("alarms", ())]
    for branch, layers in load.items():
        before = watched.get("starved", {}).get(branch, {})
        starved[branch] = {}
        for layer, load_E in layers.items():
            counts = before.get(str(layer), [0] * len(load_E))  # the keys of JSON are text
            now = [
                count + 1 if part < config.collapse_min_load else 0 for part, count in zip(load_E, counts, strict=True)
            ]
            starved[branch][str(layer)] = now
            for place, name in enumerate(experts[branch]):
                here = {"branch": branch, "layer": layer, "expert": name}
                if now[place] == window(config):
                    raised.append(here | {"since": step - now[place] + 1, "until": None})
                elif now[place] < counts[place]:
                    _close(alarms, here, step - 1)
    if raised and config.collapse_stop:
        raise TrainingDiverged(_told(raised, step, config))
    return {"starved": starved, "alarms": [*alarms, *raised]}


def _close(alarms: Sequence[dict[str, Any]], here: Mapping[str, Any], step: int) -> None:
    """The expert has work again: the last step in which it had none was `step`."""
    for alarm in alarms:
        if alarm["until"] is None and here.items() <= alarm.items():
            alarm["until"] = step


def _told(raised: Sequence[Mapping[str, Any]], step: int, config: TrainConfig) -> str:
    shown = [f"layer {a['layer']}'s {a['branch']} expert {a['expert']!r} since step {a['since']}" for a in raised[:4]]
    more = f" and {len(raised) - 4} more" if len(raised) > 4 else ""
    remedies = "; ".join(REMEDY[branch] for branch in dict.fromkeys(a["branch"] for a in raised))
    return (
        f"step {step}: the routers have given less than {config.collapse_min_load:.3g} of an even share to "
        f"{', '.join(shown)}{more}; {remedies}; or leave collapse_stop at false for a warning alone"
    )
