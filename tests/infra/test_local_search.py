"""The search in one process: the suite that Ray's passes too, and what is only its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from search_suite import GROUP, HALVING, Contest, SearcherSuite, compete, ends_of

from bam_core.protocols import Searcher, TrialEnd
from infra.local_executor import LocalTrainer
from infra.local_search import LocalSearcher


class TestLocalSearcher(SearcherSuite):
    @pytest.fixture
    def new_searcher(self, tmp_path: Path) -> Callable[[], Searcher]:
        return lambda: LocalSearcher(LocalTrainer(tmp_path / "training"))

    def test_killed_between_any_two_trials_it_ends_as_undisturbed(self, tmp_path: Path) -> None:
        """Ends and cutoffs of an earlier attempt count: the third trial is stopped for what the first reached."""

        class Killed(BaseException):
            pass

        def killed_after(n: int) -> Callable[[list[TrialEnd]], None]:
            def heard(ends: list[TrialEnd]) -> None:
                if len(ends) == n:
                    raise Killed

            return heard

        def trials(contest: Contest) -> list:
            losses = ((5.0, 4.0, 3.0), (4.0, 5.0, 1.0), (4.6, 1.0, 1.0), (3.0, 2.0, 1.0))
            return [contest.trial(f"trial-{i}", *reached) for i, reached in enumerate(losses)]

        whole = Contest(tmp_path)
        wanted = ends_of(whole.run(LocalSearcher(LocalTrainer(tmp_path / "whole")), trials(whole)))
        assert [status for _, status, _ in wanted] == ["finished", "stopped", "stopped", "finished"]
        assert [rung for rung in whole.rungs() if rung.startswith("trial-2")] == ["trial-2 0"]
        for n in (1, 2, 3):
            folder = tmp_path / f"killed-{n}"
            folder.mkdir()
            contest = Contest(folder)
            searcher = LocalSearcher(LocalTrainer(folder / "training"))
            with pytest.raises(Killed):
                searcher.run(compete, trials(contest), HALVING, GROUP, killed_after(n))
            assert ends_of(contest.run(searcher, trials(contest))) == wanted
            assert contest.rungs() == whole.rungs(), "nothing ran twice"

    def test_killed_between_a_rung_and_its_checkpoint_the_same_trial_goes_on(self, tmp_path: Path) -> None:
        """The note is written first, so the rung is judged once, though it is trained twice."""
        contest = Contest(tmp_path)
        trials = [contest.trial("only", 3.0, 2.0, 1.0, fails_at=1)]
        trainer = LocalTrainer(tmp_path / "training")
        with pytest.raises(Exception, match="the store is gone"):
            contest.run(LocalSearcher(trainer), trials)
        for saved in (tmp_path / "training" / "only").iterdir():
            saved.rename(tmp_path / saved.name)
        contest.repaired.touch()
        assert ends_of(contest.run(LocalSearcher(trainer), trials)) == [("only", "finished", (3.0, 2.0, 1.0))]
        assert contest.rungs() == ["only 0", "only 0", "only 1", "only 2"]
