"""A training on an embedded Ray whose checkpoints go to S3: run as a script, so that Ray inherits its environment.

    python s3_training.py TRAINING_URI FOLDER

The first worker of all dies, without a word, in the middle. Prints {resumed_from, bytes} of the one that ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

N_STEPS, DIES_AT = 6, 5
WEIGHTS = b"w" * 3_000_000


def train(worker: Any, config: Mapping[str, Any]) -> Any:
    from bam_core.protocols import Trained

    resumed = worker.resume_dir()
    start = 0
    if resumed is not None:
        start = int((resumed / "step").read_text())
        assert (resumed / "weights").read_bytes() == WEIGHTS
    died = Path(config["folder"], "died")
    for step in range(start + 1, N_STEPS + 1):
        if step == DIES_AT and not died.exists():
            while f"step-{step - 2:08d}" not in state(config["uri"]):  # Ray takes up a checkpoint when it next looks
                time.sleep(0.05)
            died.touch()
            os._exit(9)

        def write(folder: Path, step: int = step) -> None:
            (folder / "step").write_text(str(step))
            (folder / "weights").write_bytes(WEIGHTS)

        worker.save(step, write)
    return Trained({"resumed_from": start}, lambda folder: (folder / "model").write_bytes(WEIGHTS))


def state(uri: str) -> str:
    """What Ray has written down of this training."""
    from infra.storage import Storage

    return (Storage(uri).read("checkpoint_manager_snapshot.json") or b"").decode()


def no_inputs() -> dict[str, Path]:
    return {}


def no_log(step: int, metrics: Mapping[str, float]) -> None:
    pass


def main(uri: str, folder: str) -> None:
    import s3_training  # by the name that workers import it by

    from bam_core.graph.stage import Resources
    from infra import ray_env

    ray_env.prepare(verbose=False, embedded=True)
    from infra.ray_executor import start_ray
    from infra.ray_train import RayTrainer

    start_ray(None, n_cpus=2, verbose=False)
    out = Path(folder, "out")
    out.mkdir()
    trainer = RayTrainer(uri, s3_training.no_inputs, s3_training.no_log, Path(folder, "log"))
    result = trainer.fit(s3_training.train, {"folder": folder, "uri": uri}, Resources(1, 1), out)
    print(json.dumps({**result, "bytes": (out / "model").stat().st_size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
