"""Worker groups on a cluster, driven by a process of its own: `python -m tests.cluster.groups WHAT ADDRESS FOLDER`.

Prints one JSON object. The process that tests has a Ray already, and can join no other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bam_core.graph.stage import Resources
from bam_core.protocols import Trained, TrainWorker
from bam_core.train.parallel import rows_of_rank

ROWS = 7
"""Per step, of whatever number of ranks: they divide unequally by two."""
STEPS = 9
GATES = {0: 2, 3: 1, 6: 2}
"""Before these steps the elastic run waits for a group of this size: it shrinks by a lost node, grows by a new one."""


def nothing(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    return Trained({"world_size": worker.world_size}, write=lambda folder: None)


def add_up(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """Adds up all rows of all steps. A step that was saved a moment before a group's end may be done again."""
    import torch

    resumed = worker.resume_dir()
    state = json.loads((resumed / "state.json").read_text()) if resumed else {"total": 0, "sizes": []}
    while (step := len(state["sizes"])) < STEPS:
        while worker.world_size != GATES.get(step, worker.world_size):
            time.sleep(0.05)  # until this group is ended
        rows = rows_of_rank(np.arange(ROWS) + step, worker.rank, worker.world_size)
        total = torch.tensor([int(rows.sum())])
        if worker.world_size > 1:
            torch.distributed.all_reduce(total)
        state["total"] += int(total)
        state["sizes"].append(worker.world_size)
        worker.save(step, lambda folder: void((folder / "state.json").write_text(json.dumps(state))))
    return Trained(dict(state), write=lambda folder: None)


def void(_: Any) -> None:
    pass


def trainer(folder: Path, name: str) -> Any:
    from infra.ray_train import RayTrainer

    return RayTrainer(str(folder / "training" / name), dict, lambda step, metrics: None, folder / "nowhere")


def placed(folder: Path) -> dict[str, Any]:
    """Which nodes a packed and a spread group of two run on, and the CPUs that are free while a group has them all."""
    nodes = {}
    for placement in ("pack", "spread"):
        group = trainer(folder, placement)
        group.fit(nothing, {}, Resources(2, 1, trains=True, placement=placement), _out(folder, placement))
        nodes[placement] = [place["node"] for place in group.workers]
    return nodes


def elastic(folder: Path) -> dict[str, Any]:
    import infra.ray_train

    infra.ray_train.LOOK_FOR_ROOM_S = 1.0
    group = trainer(folder, "elastic")
    resources = Resources(1, 1, trains=True, max_workers=2, placement="spread")
    return {**group.fit(add_up, {}, resources, _out(folder, "elastic")), "workers": len(group.workers)}


def _out(folder: Path, name: str) -> Path:
    out = folder / f"out-{name}"
    out.mkdir()
    return out


WHAT: dict[str, Callable[[Path], dict[str, Any]]] = {"placed": placed, "elastic": elastic}


def main(what: str, address: str, folder: Path) -> None:
    from infra import ray_env

    ray_env.prepare(verbose=False, embedded=False)
    import ray

    from infra.ray_executor import start_ray

    start_ray(address, n_cpus=1, verbose=False)
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    own = names[ray.get_runtime_context().get_node_id()]
    print(json.dumps({"driver": own, "names": names, **WHAT[what](folder)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
