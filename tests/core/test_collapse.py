"""The alarm for experts without work: when it is raised, that it stops a run if asked, that it survives a restart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import DENSE, MIXTURE, PHASE, RandomRows, Worker, fresh, masters

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.errors import TrainingDiverged
from bam_core.nn.lm import LM
from bam_core.train.collapse import MIN_STEPS, loads, watch, window
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.state import State, load_state
from bam_core.train.step import accumulate_gradient

LONG = replace(PHASE, tokens=PHASE.batch_tokens * 40, lr=1e-4, collapse_for_frac=0.3, balance_rate=0.04)
"""40 steps; 12 make an alarm."""
EXPERTS = {"ffn": ("general", "law"), "attention": ()}


def watched(parts: Sequence[float], config: TrainConfig = LONG) -> dict[str, Any]:
    """After steps in each of which the second of two experts had this part of an even share."""
    found: dict[str, Any] = {}
    for step, part in enumerate(parts, 1):
        found = watch(found, {"ffn": {3: [2 - part, part]}}, step, config, EXPERTS)
    return found


def test_an_expert_without_work_for_a_part_of_the_run_is_an_alarm_once() -> None:
    assert window(LONG) == 12
    assert watched([0.0] * 11)["alarms"] == []
    alarm = {"branch": "ffn", "layer": 3, "expert": "law", "since": 3, "until": None}
    assert watched([1.0, 1.0] + [0.0] * 12)["alarms"] == [alarm]
    assert watched([1.0, 1.0] + [0.0] * 30)["alarms"] == [alarm]


def test_work_in_between_starts_the_count_anew_and_ends_an_alarm() -> None:
    assert watched([0.0] * 11 + [0.5] + [0.0] * 11)["alarms"] == []
    alarms = watched([0.0] * 14 + [1.0, 1.0] + [0.009] * 12)["alarms"]
    assert [(alarm["since"], alarm["until"]) for alarm in alarms] == [(1, 14), (17, None)]


def test_a_hundredth_of_an_even_share_is_work_enough() -> None:
    assert watched([0.01] * 40)["alarms"] == []
    assert watched([0.0] * 40, replace(LONG, collapse_min_load=0.0))["alarms"] == []


def test_a_short_run_raises_none_for_a_few_batches_without_a_domain() -> None:
    short = replace(LONG, tokens=PHASE.batch_tokens * 12, collapse_for_frac=0.0)
    assert window(short) == MIN_STEPS == 10
    assert watched([0.0] * 9, short)["alarms"] == []


def test_where_it_stops_the_run_it_says_which_expert_since_when_and_what_to_do() -> None:
    stopping = replace(LONG, collapse_stop=True)
    with pytest.raises(TrainingDiverged) as raised:
        watched([1.0] * 5 + [0.0] * 20, stopping)
    told = str(raised.value)
    assert "step 17" in told
    assert "layer 3's ffn expert 'law' since step 6" in told
    assert "0.01 of an even share" in told
    assert "load_balancing_coef" in told
    assert "collapse_stop" in told


@given(st.lists(st.sampled_from([0.0, 0.005, 0.5, 1.0]), min_size=1, max_size=60), st.data())
def test_what_is_known_survives_json_at_any_step(parts: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(parts)))
    found: dict[str, Any] = {}
    for step, part in enumerate(parts, 1):
        if step == at:
            found = json.loads(json.dumps(found))
        found = watch(found, {"ffn": {3: [2 - part, part]}}, step, LONG, EXPERTS)
    assert found == watched(parts)


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_alarms_are_the_long_runs_of_starved_steps(starved: list[bool]) -> None:
    """Against a plain search of the whole path."""
    expected, start = [], None
    for step, is_starved in enumerate([*starved, False], 1):
        if is_starved and start is None:
            start = step
        elif not is_starved and start is not None:
            if step - start >= 12:
                expected.append((start, None if step > len(starved) else step - 1))
            start = None
    found = watched([0.0 if is_starved else 1.0 for is_starved in starved])["alarms"]
    assert [(alarm["since"], alarm["until"]) for alarm in found] == expected


# --- loads ---------------------------------------------------------------------------------------------------


LOADED = {
    "soft attention, top-1 FFN": MIXTURE,
    "top-2 attention in one layer": replace(MIXTURE, attention=AttentionExperts(3, 2, layers=(1,)), ffn=None),
    "a soft layer": replace(MIXTURE, attention=None, ffn=FFNExperts(3, 1, soft_layers=(1,))),
    "dense": DENSE,
}


@pytest.mark.parametrize("config", LOADED.values(), ids=LOADED)
def test_loads_are_those_of_the_whole_batch_whatever_the_micro_batches(config: ModelConfig) -> None:
    exact = replace(PHASE, dtype="fp64")
    rows = RandomRows().batch(0, exact.rows_per_batch)
    model = _lively(config)
    routing = model(torch.from_numpy(rows)[:, :-1]).routing
    expected: dict[str, dict[int, list[float]]] = {}
    for layer, chosen in enumerate(routing):
        for branch in ("ffn", "attention"):
            router = getattr(chosen, branch)
            if router is not None:
                is_soft = router.experts_NK.shape[-1] == 3
                counts = np.bincount(router.experts_NK.flatten().numpy(), minlength=3)
                load = router.probs_NE.detach().flatten(0, 1).sum(0).numpy() if is_soft else counts
                expected.setdefault(branch, {})[layer] = (3 * load / load.sum()).tolist()
    for micro_batch_rows in (8, 3):
        model = _lively(config)
        sums = accumulate_gradient(model, Optimizer(model, exact), rows, exact, micro_batch_rows)
        found = loads(sums, config, 1, exact)
        assert found.keys() == expected.keys()
        for branch, layers in expected.items():
            assert found[branch].keys() == layers.keys()
            for layer, load in layers.items():
                assert found[branch][layer] == pytest.approx(load, rel=1e-9)


def _lively(config: ModelConfig) -> LM:
    model = fresh(config).cast(torch.float64)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data.mul_(40)
    return model


# --- runs ----------------------------------------------------------------------------------------------------


BALANCED = replace(DENSE, ffn=FFNExperts(3, 1, layers=(1,), balance="bias"), experts=("general", "code", "law"))


def collapsing() -> LM:
    """A balancing bias keeps the last expert of layer 1 without work, until it has moved far enough."""
    model = fresh(BALANCED)
    model.blocks[1].ffn.balance_bias.data.copy_(torch.tensor([0.0, 0.0, -1.0]))
    return model


def test_a_run_warns_and_goes_on(tmp_path: Path) -> None:
    _, progress = train(collapsing(), RandomRows(), LONG, Worker(tmp_path), Pace())
    assert progress.step == 40
    [alarm] = progress.collapse["alarms"]
    assert {**alarm, "until": None} == {"branch": "ffn", "layer": 1, "expert": "law", "since": 1, "until": None}
    assert 12 <= alarm["until"] < 40, "the bias moves by 0.04 in a step"


def test_an_expert_that_was_added_may_be_quiet_until_its_bias_has_faded(tmp_path: Path) -> None:
    """Its bias goes to 0 over the first half of the run, as is meant; what it does after that counts."""
    stopping = replace(LONG, collapse_stop=True)
    for place, frac in enumerate((0.5, 0.0)):
        model = fresh(replace(BALANCED, ffn=FFNExperts(3, 1, layers=(1,), router_bias=True)))
        model.blocks[1].ffn.router_bias.data.copy_(torch.tensor([0.0, 0.0, -50.0]))
        config = replace(stopping, router_bias_frac=frac)
        _, progress = train(model, RandomRows(), config, Worker(tmp_path / str(place)), Pace())
        assert progress.collapse["alarms"] == []
    never = fresh(replace(BALANCED, ffn=FFNExperts(3, 1, layers=(1,), router_bias=True, balance="bias")))
    never.blocks[1].ffn.router_bias.data.zero_()
    never.blocks[1].ffn.balance_bias.data.copy_(torch.tensor([0.0, 0.0, -9.0]))
    with pytest.raises(TrainingDiverged, match=r"step 32: .* since step 21"):
        train(never, RandomRows(), stopping, Worker(tmp_path / "never"), Pace())


def test_a_healthy_run_raises_nothing(tmp_path: Path) -> None:
    for number, config in enumerate((replace(LONG, collapse_stop=True), LONG)):
        _, progress = train(_lively(MIXTURE), RandomRows(), config, Worker(tmp_path / str(number)), Pace())
        assert progress.collapse["alarms"] == []


def test_a_run_that_it_stops_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    stopping = replace(LONG, collapse_stop=True)
    with pytest.raises(TrainingDiverged, match=r"step 12: .*layer 1's ffn expert 'law' since step 1"):
        train(collapsing(), RandomRows(), stopping, Worker(tmp_path), Pace(checkpoint_steps=5))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000005", "step-000010"]
    with pytest.raises(TrainingDiverged, match=r"step 12: .* since step 1"):  # resumed from step 10: it remembers
        train(collapsing(), RandomRows(), stopping, Worker(tmp_path), Pace(checkpoint_steps=5))


@pytest.mark.parametrize("die_at", [5, 15, 30])
def test_a_resumed_run_raises_the_alarms_of_an_undisturbed_one(tmp_path: Path, die_at: int) -> None:
    optimizer, whole = train(collapsing(), RandomRows(), LONG, Worker(tmp_path / "whole"), Pace(checkpoint_steps=5))
    with pytest.raises(KeyboardInterrupt):
        train(collapsing(), RandomRows(), LONG, Worker(tmp_path / "cut", die_at=die_at), Pace(checkpoint_steps=5))
    again, resumed = train(collapsing(), RandomRows(), LONG, Worker(tmp_path / "cut"), Pace(checkpoint_steps=5))
    assert resumed == whole
    assert masters(again) == masters(optimizer)


def test_the_alarm_changes_nothing_that_is_learnt_and_no_key(tmp_path: Path) -> None:
    off = replace(LONG, collapse_min_load=0.0)
    one, _ = train(collapsing(), RandomRows(), LONG, Worker(tmp_path / "on"), Pace())
    other, _ = train(collapsing(), RandomRows(), off, Worker(tmp_path / "off"), Pace())
    assert masters(one) == masters(other)
    assert not any(name.startswith("collapse") for name in PHASE.identity())
    assert replace(PHASE, collapse_stop=True).identity() == PHASE.identity() | {"collapse_stop": True}


def test_a_checkpoint_from_before_the_alarm_still_loads(tmp_path: Path) -> None:
    optimizer, progress = train(collapsing(), RandomRows(), LONG, Worker(tmp_path / "run"), Pace())
    folder = tmp_path / "old"
    folder.mkdir()
    State.of(optimizer, progress).write(folder)
    facts = json.loads((folder / "state.json").read_text())
    del facts["collapse"]
    (folder / "state.json").write_text(json.dumps(facts))
    assert load_state(folder, optimizer).collapse == {}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [({"collapse_min_load": 2.0}, "collapse_min_load"), ({"collapse_for_frac": -0.1}, "collapse_for_frac")],
)
def test_fractions_are_fractions(changes: dict[str, float], wrong: str) -> None:
    assert [problem.path for problem in replace(PHASE, **changes).problems()] == [wrong]
