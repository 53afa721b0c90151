"""Shares that follow the losses: the rule by hand and by its properties, and a run that follows it and is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import DENSE, MIXTURE, PHASE, Worker, fresh, masters

from bam_core.config import Adaptive, ModelConfig, TrainConfig
from bam_core.data.schedule import CountedMixture
from bam_core.data.subset import keep_back
from bam_core.errors import TrainingDiverged
from bam_core.nn.costs import training_flops
from bam_core.nn.lm import LM
from bam_core.train.adapt import Segment, forward_flops, judging_flops, next_segment, updated
from bam_core.train.judge import Judge
from bam_core.train.loop import Pace, train
from bam_core.train.state import Progress, State, load_state
from tests.ranks import Ranks, RankWorker, ranks

NAMES = ("code", "general", "law")
UNIFORM = dict.fromkeys(NAMES, 1 / 3)
ADAPTS = replace(
    PHASE,
    tokens=64 * 20,
    shares=UNIFORM,
    dtype="fp64",
    adaptive=Adaptive(every=4, rate=2.0, floor=0.1, eval_tokens=40, reference="specialists"),
)
"""20 steps of 8 rows of 8 tokens; an update every 4 steps, on 5 rows of each domain."""
PACE = Pace(micro_batch_rows=4)

losses = st.fixed_dictionaries({name: st.floats(0, 12) for name in NAMES})
shares = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda parts: {name: part / sum(parts) for name, part in zip(NAMES, parts, strict=True)}
)


@given(shares, losses, st.floats(0, 50), st.floats(0, 1 / 3))
def test_shares_sum_to_one_and_none_is_below_the_floor(before, paid, rate, floor):
    after = updated(before, paid, rate, floor)
    assert sum(after.values()) == pytest.approx(1)
    assert min(after.values()) >= floor


@given(shares, losses, st.floats(0, 5), st.floats(-10, 10))
def test_what_all_domains_have_in_common_has_no_effect(before, paid, rate, common):
    shifted = updated(before, {name: loss + common for name, loss in paid.items()}, rate, 0.05)
    assert shifted == pytest.approx(updated(before, paid, rate, 0.05), rel=1e-6, abs=1e-9)


@given(losses, st.floats(0.01, 5))
def test_of_two_equal_shares_the_better_paid_is_larger_after(paid, rate):
    after = updated(UNIFORM, paid, rate, 0.05)
    order = sorted(NAMES, key=paid.__getitem__)
    assert [after[name] for name in order] == sorted(after[name] for name in order)


def test_the_formula_by_hand():
    """exp(2 * 0.5) = e beside 1 and 1, from equal shares: e / (e + 2); then 0.1 + 0.7 of that."""
    after = updated(UNIFORM, {"code": 0.5, "general": 0.0, "law": 0.0}, rate=2.0, floor=0.1)
    assert after == pytest.approx(
        {"code": 0.1 + 0.7 * exp(1) / (exp(1) + 2), **dict.fromkeys(NAMES[1:], 0.1 + 0.7 / (exp(1) + 2))}
    )


@given(st.floats(0, 12), st.floats(0, 20))
def test_equal_losses_keep_uniform_shares(loss, rate):
    path: list[Segment] = []
    config = replace(ADAPTS, adaptive=replace(ADAPTS.adaptive, rate=rate))
    while not path or path[-1].step + path[-1].n_steps < config.n_steps:
        path.append(next_segment(config, path, dict.fromkeys(NAMES, loss), dict.fromkeys(NAMES, 1.0)))
    rows = {name: sum(segment.rows[name] for segment in path) for name in NAMES}
    assert max(rows.values()) - min(rows.values()) <= 1
    assert all(max(s.rows.values()) - min(s.rows.values()) <= 2 for s in path)


@given(st.lists(losses, min_size=9, max_size=9), st.integers(1, 7), st.floats(0, 8))
def test_segments_cover_the_run_and_their_rows_follow_the_aim(measured, every, rate):
    config = replace(ADAPTS, adaptive=replace(ADAPTS.adaptive, every=every, rate=rate), tokens=64 * 9)
    path: list[Segment] = []
    for found in measured:
        if path and path[-1].step + path[-1].n_steps == config.n_steps:
            break
        path.append(next_segment(config, path, found, {}))
    assert [segment.step for segment in path] == list(range(0, 9, every))
    assert sum(segment.n_steps for segment in path) == 9
    for name in NAMES:
        for n in range(len(path) + 1):
            aim = sum(s.aim[name] * s.n_steps * 8 for s in path[:n])
            assert abs(sum(s.rows[name] for s in path[:n]) - aim) < 1 + 1e-9
    for segment in path[1:]:
        assert min(segment.aim.values()) >= 0.1
        assert sum(segment.rows.values()) == segment.n_steps * 8


def test_rules_and_references():
    first = next_segment(ADAPTS, [], dict.fromkeys(NAMES, 3.0), {})
    assert first.aim == UNIFORM
    now = {"code": 2.0, "general": 2.5, "law": 2.9}
    by_loss = next_segment(ADAPTS, [first], now, {})
    assert by_loss.aim == updated(UNIFORM, now, 2.0, 0.1)
    above = next_segment(ADAPTS, [first], now, {"code": 1.0, "general": 2.4, "law": 3.0})
    assert above.aim == updated(UNIFORM, {"code": 1.0, "general": 2.5 - 2.4, "law": 2.9 - 3.0}, 2.0, 0.1)
    slope = replace(ADAPTS, adaptive=replace(ADAPTS.adaptive, rule="loss_slope"))
    assert not slope.adaptive.compares
    assert next_segment(slope, [first], now, {}).aim == updated(UNIFORM, {n: 3.0 - now[n] for n in NAMES}, 2.0, 0.1)


def test_how_often():
    assert [Adaptive(every=every).steps_between(200) for every in (0.05, 0.001, 1, 7)] == [10, 1, 1, 7]


def test_what_measuring_costs():
    """5 rows of 8 tokens of 3 domains: five times by the mixture, once by a dense model."""
    tokens = 5 * 8 * 3
    assert 3 * forward_flops(DENSE, tokens, 8) == training_flops(DENSE, tokens, 8)
    expected = 5 * forward_flops(MIXTURE, tokens, 8) + forward_flops(DENSE, tokens, 8)
    assert judging_flops(MIXTURE, DENSE, ADAPTS) == expected
    alone = replace(ADAPTS, adaptive=replace(ADAPTS.adaptive, reference="none"))
    assert judging_flops(MIXTURE, DENSE, alone) == 5 * forward_flops(MIXTURE, tokens, 8)
    assert judging_flops(MIXTURE, DENSE, replace(ADAPTS, adaptive=None)) == 0


class Domain:
    """Rows of one domain: `n_symbols` tokens from `first` on, in a random walk of few steps where it is easy."""

    row_len = 9

    def __init__(self, first: int, n_symbols: int, n_rows: int = 60) -> None:
        rng = np.random.default_rng(first)
        self._tokens = first + rng.integers(0, n_symbols, size=(n_rows, self.row_len))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, indices: Any, /) -> np.ndarray:
        return self._tokens[np.asarray(indices)]


DOMAINS = {"code": Domain(0, 2), "general": Domain(10, 4), "law": Domain(20, 30)}
"""Three alphabets; `law` has by far the most to learn."""


def run(
    worker: Any, config: TrainConfig = ADAPTS, model: ModelConfig = MIXTURE, pace: Pace = PACE, seed: int = 0
) -> tuple[Any, Progress]:
    parts = {name: keep_back(name, DOMAINS[name], 5) for name in config.domains}
    batches = CountedMixture({n: kept for n, (kept, _) in parts.items()}, config.domains, config.seed, 8)

    def references() -> Iterator[tuple[LM, list[str]]]:
        yield fresh(DENSE, 7).cast(torch.float64), ["code", "law"]
        yield fresh(DENSE, 8).cast(torch.float64), ["general"]

    judged = {name: rows for name, (_, rows) in parts.items()}
    judge = Judge(config, worker, batches, judged, references, pace.micro_batch_rows)
    return train(fresh(model, seed), batches, config, worker, pace, judge=judge)


@pytest.mark.parametrize("rule", ["excess_loss", "loss_slope"])
@pytest.mark.parametrize("die_at", [3, 4, 5, 8, 19])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, die_at: int, rule: str) -> None:
    """Killed before an update, right at one (measured again), after one, and in the last segment."""
    config = replace(ADAPTS, adaptive=replace(ADAPTS.adaptive, rule=rule), dtype="bf16")
    pace = Pace(micro_batch_rows=4, checkpoint_steps=1)
    whole, expected = run(Worker(tmp_path / "a"), config, pace=pace)
    with pytest.raises(KeyboardInterrupt):
        run(Worker(tmp_path / "b", die_at=die_at), config, pace=pace)
    resumed, found = run(Worker(tmp_path / "b"), config, pace=pace, seed=9)
    assert masters(resumed) == masters(whole)
    assert json.dumps(asdict(found)) == json.dumps(asdict(expected))
    assert [part["step"] for part in found.data_path] == [0, 4, 8, 12, 16]
    assert len({json.dumps(part["rows"]) for part in found.data_path}) > 2, "shares must have moved"


def test_a_domain_that_is_hard_and_has_a_small_share_gets_a_larger_one(tmp_path: Path) -> None:
    """`law` starts at a tenth with 30 symbols to tell apart; the others are learnt at once."""
    config = replace(
        ADAPTS,
        tokens=64 * 60,
        shares={"code": 0.45, "general": 0.45, "law": 0.1},
        adaptive=Adaptive(every=6, rate=0.5, floor=0.05, eval_tokens=40, reference="none"),
    )
    _, progress = run(Worker(tmp_path), config, DENSE)
    path = [Segment.from_json(part) for part in progress.data_path]
    law = [segment.shares["law"] for segment in path]
    assert law[0] == pytest.approx(0.1, abs=1 / 48)
    assert law == sorted(law)
    assert law[-1] > 0.5
    assert all(min(segment.aim.values()) >= 0.05 for segment in path[1:])
    assert path[-1].losses["code"] < 1.2 * log(2) < path[-1].losses["law"]
    assert [entry["data/law"] for entry in progress.history[:6]] == pytest.approx([law[0]] * 6)


def test_losses_are_means_over_the_rows_that_are_kept_back(tmp_path: Path) -> None:
    """Of the model before the first step, and of each domain's own model of comparison."""
    _, progress = run(Worker(tmp_path))
    found = [(MIXTURE, 0, name, progress.data_path[0]["losses"][name]) for name in NAMES]
    found += [(DENSE, {"general": 8}.get(name, 7), name, progress.reference[name]) for name in NAMES]
    for config, seed, name, loss in found:
        model = fresh(config, seed).cast(torch.float64).eval()
        tokens = torch.from_numpy(keep_back(name, DOMAINS[name], 5)[1])
        logits = model.logits(model(tokens[:, :-1]).hidden_BTD)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
        assert loss == pytest.approx(expected, rel=1e-12)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Poisoned(LM):
        def logits(self, *args: Any) -> torch.Tensor:
            return super().logits(*args) * (1.0 if self.training else float("nan"))

    kept, rows = keep_back("law", DOMAINS["law"], 5)
    config = replace(ADAPTS, shares={"law": 1.0}, adaptive=Adaptive(every=4, reference="none"))
    batches = CountedMixture({"law": kept}, ["law"], 0, 8)
    worker = Worker(tmp_path)
    judge = Judge(config, worker, batches, {"law": rows}, lambda: (), 4)
    with pytest.raises(TrainingDiverged, match="step 0: a domain's loss is not finite"):
        train(Poisoned(DENSE), batches, config, worker, Pace(), judge=judge)


def test_a_checkpoint_from_before_shares_could_change_is_read(tmp_path: Path) -> None:
    optimizer, progress = train(fresh(DENSE), _Rows(), PHASE, Worker(tmp_path / "run"), Pace())
    State.of(optimizer, progress).write(tmp_path)
    facts = json.loads((tmp_path / "state.json").read_text())
    del facts["data_path"], facts["reference"]
    (tmp_path / "state.json").write_text(json.dumps(facts))
    assert load_state(tmp_path, optimizer) == progress


class _Rows:
    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 61, size=(rows_per_batch, 9))


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    with ranks(3) as started:
        yield started


def on_a_rank(rank: int, world: int, folder: Path, strategy: str, die_at: int | None = None) -> dict[str, Any] | None:
    pace = Pace(micro_batch_rows=2, checkpoint_steps=4, strategy=strategy)  # type: ignore[arg-type]
    try:
        optimizer, progress = run(RankWorker(folder, rank, world, die_at), pace=pace)
    except KeyboardInterrupt:
        return None
    return {"progress": asdict(progress), "masters": {name: w.clone() for name, w in optimizer.masters()}}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_and_give_what_one_gives(tmp_path: Path, group: Ranks, world: int, strategy: str) -> None:
    """5 rows on 2 or 3 ranks, in micro-batches of 2: some have fewer, and one needs a row that counts for none."""
    alone = on_a_rank(0, 1, tmp_path / "alone", "ddp")
    assert alone is not None
    found = group.run(on_a_rank, world, tmp_path / "group", strategy)
    paths = [json.dumps([one["progress"]["data_path"], one["progress"]["reference"]]) for one in found]
    assert len(set(paths)) == 1, "every rank has the same bits"
    for part, expected in zip(found[0]["progress"]["data_path"], alone["progress"]["data_path"], strict=True):
        assert part["rows"] == expected["rows"]
        assert part["losses"] == pytest.approx(expected["losses"], rel=1e-9)
    for name, master in alone["masters"].items():
        torch.testing.assert_close(found[0]["masters"][name], master, rtol=1e-9, atol=1e-9, msg=name)


def test_a_group_resumes_bit_identical_and_one_goes_on_from_what_two_wrote(tmp_path: Path, group: Ranks) -> None:
    whole = group.run(on_a_rank, 2, tmp_path / "whole", "fsdp")[0]
    for folder in ("same", "alone"):
        assert group.run(on_a_rank, 2, tmp_path / folder, "fsdp", 8) == [None, None]
    resumed = group.run(on_a_rank, 2, tmp_path / "same", "fsdp")[0]
    assert json.dumps(resumed["progress"]) == json.dumps(whole["progress"])
    assert all(torch.equal(resumed["masters"][name], master) for name, master in whole["masters"].items())
    other = on_a_rank(0, 1, tmp_path / "alone", "ddp")
    assert other is not None
    assert [p["rows"] for p in other["progress"]["data_path"]] == [p["rows"] for p in whole["progress"]["data_path"]]
