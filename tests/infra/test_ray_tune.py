"""The search on Ray Tune passes the suite of the local one; then what only a cluster can show."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from search_suite import GROUP, Contest, SearcherSuite, compete, ends_of, meet

from bam_core.errors import UsageError
from bam_core.graph.stage import Resources
from bam_core.protocols import Halving, Searcher, Trial
from bam_core.train.search import Cutoffs

pytestmark = pytest.mark.ray


class Located:
    def __call__(self) -> dict[str, Path]:
        return {}


def silent(step: int, metrics: Mapping[str, float]) -> None:
    pass


class TestRaySearcher(SearcherSuite):
    @pytest.fixture
    def new_searcher(self, ray_cluster: None, tmp_path: Path) -> Callable[[], Searcher]:
        from infra.ray_train import RayTrainer
        from infra.ray_tune import RaySearcher

        uri = str(tmp_path / "training" / "tune.lr-0123456789ab")
        return lambda: RaySearcher(RayTrainer(uri, Located(), silent, tmp_path / "nowhere"))

    @pytest.mark.long
    def test_trials_run_side_by_side_and_none_waits_for_ever(
        self, new_searcher: Callable[[], Searcher], tmp_path: Path
    ) -> None:
        """Three trials with a worker of a whole core each, on two cores: those who meet are both on one."""
        names = {"a": "b", "b": "a", "c": "a"}
        trials = [
            Trial(f"trial-{name}", {"folder": str(tmp_path), "name": name, "other": other, "loss": float(ord(name))})
            for name, other in names.items()
        ]
        ends = new_searcher().run(meet, trials, Halving(n_rungs=1, reduction=3), GROUP, lambda ends: None)
        assert ends_of(ends) == [(trial.name, "finished", (float(trial.config["loss"]),)) for trial in trials]

    @pytest.mark.long
    def test_a_stopped_trial_gives_its_room_back(self, new_searcher: Callable[[], Searcher], tmp_path: Path) -> None:
        """Each of these takes all of the cluster, so each must have left before the next starts."""
        contest = Contest(tmp_path)
        trials = [contest.trial("first", 1.0, 1.0), *(contest.trial(f"worse-{i}", 2.0 + i, 1.0) for i in range(2))]
        whole = Resources(workers=1, cpus=2, trains=True)
        ends = new_searcher().run(compete, trials, Halving(n_rungs=2, reduction=2), whole, lambda ends: None)
        assert [end.status for end in ends] == ["finished", "stopped", "stopped"]

    def test_a_group_that_can_never_fit_fails_at_once_with_the_arithmetic(
        self, new_searcher: Callable[[], Searcher], tmp_path: Path
    ) -> None:
        contest = Contest(tmp_path)
        with pytest.raises(UsageError, match="can never fit"):
            new_searcher().run(
                compete, [contest.trial("a", 1.0)], Halving(1, 2), Resources(3, 64, trains=True), lambda ends: None
            )
        assert not contest.ran.exists()


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_ray_stops_whom_we_stop(reduction: int) -> None:
    """Our rule and Ray's ASHA, told the same in the same order, decide alike: searches differ by their timing alone."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    n_rungs, chance = 4, random.Random(reduction)
    scheduler = ASHAScheduler(
        time_attr="t",
        metric="loss",
        mode="min",
        grace_period=1,
        max_t=reduction ** (n_rungs - 1),
        reduction_factor=reduction,
    )
    ours, decided = Cutoffs(reduction), []
    going = {f"trial-{i}": 0 for i in range(60)}
    trials = {name: SimpleNamespace(trial_id=name) for name in going}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    while going:
        name = chance.choice(sorted(going))
        rung, loss = going.pop(name), math.floor(chance.random() * 20) / 4  # ties too
        if rung == n_rungs - 1:
            continue  # the end: Ray stops everybody there
        action = scheduler.on_trial_result(None, trials[name], {"t": reduction**rung, "loss": loss})
        stops = ours.stops(name, rung, loss)
        assert (action == TrialScheduler.STOP) == stops, (name, rung, loss)
        decided.append(stops)
        if not stops:
            going[name] = rung + 1
    assert 10 < sum(decided) < len(decided) - 10, "both happen"
