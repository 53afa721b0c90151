"""The same command in several shells on one store: the runs share the work, and each artifact is made once."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.e2e.kit import STAGES, Place


def test_local_runs_share_the_work_of_one_store(empty: Place) -> None:
    program = "import sys; from pipelines.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, *empty.words("run", str(empty.recipe), "--json")]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert all(stage["status"] in ("done", "reused") for result in results for stage in result["stages"])
    made = [{stage["stage"] for stage in result["stages"] if stage["action"] == "run"} for result in results]
    assert made[0] | made[1] == set(STAGES)
    assert not made[0] & made[1], "made twice"
    assert all(made), "one run did everything, so the other waited for it"
