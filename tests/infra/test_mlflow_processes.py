"""Four processes make one SQLite file and write to it at once, as drivers, stages and rank-0 workers do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from infra.mlflow_tracker import MlflowTracker
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS

pytestmark = MLFLOW_WARNINGS

N_PROCESSES, N_STEPS = 4, 25

WORKER = """
import pickle, sys
from pathlib import Path
from tests.infra.mlflow_pipeline import TinyPipeline, key_of, model_files, stage_of

store, number, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tracker = pickle.loads((store / "tracker").read_bytes())
parent = tracker.start_pipeline("tiny", "run " + number, {"name": "tiny"})
stage = stage_of("expert.d" + number, {"domain": number})
handle = tracker.start_stage(parent, stage, key_of(stage.name), {})
for step in range(steps):
    tracker.log(handle, step, {"loss": float(step), "lr": 1e-3})
pipeline = TinyPipeline(store)
record = pipeline.write(stage, model_files(stage.name), {"loss": 0.5})
tracker.end_stage(handle, record, pipeline.folder(record))
assert not tracker.is_down
"""


def run_processes(store: Path) -> None:
    commands = [[sys.executable, "-c", WORKER, str(store), str(number), str(N_STEPS)] for number in range(N_PROCESSES)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * N_PROCESSES, "\n".join(errors)
    assert errors == [""] * N_PROCESSES


def test_four_processes_on_one_new_file(tmp_path: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path))
    (tmp_path / "tracker").write_bytes(pickle.dumps(tracker))
    run_processes(tmp_path)
    experiment = tracker.client.get_experiment_by_name("bam/tiny").experiment_id
    made = tracker.client.search_runs([experiment], "tags.`bam.stage` LIKE 'expert.%'")
    assert {run.info.run_name for run in made} == {f"expert.d{number}" for number in range(N_PROCESSES)}
    for run in made:
        steps = [point.step for point in tracker.client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(steps) == [*range(N_STEPS), N_STEPS - 1]
        assert run.info.status == "FINISHED"
        (output,) = tracker.client.get_run(run.info.run_id).outputs.model_outputs
        assert tracker.client.get_logged_model(output.model_id).status == "READY"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
