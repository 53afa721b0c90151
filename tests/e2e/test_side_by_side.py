"""The same command in several shells on one store: the runs share the work, and each artifact is made once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid

import pytest

from infra.leases import Claim
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


@pytest.mark.timeout(120)  # a run that never takes over would wait for ever
def test_what_a_dead_machine_was_making_is_made_here(empty: Place) -> None:
    """Its lease lasts its term, as nobody can be asked whether it lives; then it is taken over, after any number of
    attempts that found it held."""
    key = empty.plan("--json").stages()["tokenizer"]["key"]
    folder = empty.store / "artifacts" / "tokenizer" / key[:12]
    folder.mkdir(parents=True)
    lease = Claim("far:1 run", "far", 1, 1, "another boot", uuid.uuid4().hex, time.time() + 4, 4.0)
    (folder / "lease.json").write_bytes(lease.to_bytes())
    ended = empty.run("--only", "tokenizer")
    assert ended.status == 0, ended.err
    assert "held by far:1" in ended.err
    assert empty.is_done("tokenizer")
