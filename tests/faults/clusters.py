"""What dies on a Ray cluster of this machine, which has a head that runs no training and a node that does."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster.kit import Cluster, Node
from tests.faults import inject
from tests.faults.drivers import MIDDLE, in_the_middle
from tests.faults.lab import CHECKPOINT_STEPS, LOOK_EVERY_S, ROOT, SITE, Lab, Running

CPUS = 2
SNAPSHOTS = "training/*/*/checkpoint_manager_snapshot.json"


@dataclass
class Machines:
    """The cluster, started when it is first needed, and the node that trains."""

    folder: Path
    cluster: Cluster | None = None
    n_nodes: int = field(default=0)

    def join(self, lab: Lab) -> Cluster:
        """Have the lab's command run here, and its faults reach the processes of this cluster."""
        cluster = self.cluster or self._start()
        link = self.folder / "faults"
        link.unlink(missing_ok=True)
        link.symlink_to(lab.faults)
        lab.executor, lab.env = "ray", {**cluster.env(), "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}"}
        lab.words = ("--address", cluster.address, "--until", "evaluate")
        return cluster

    @property
    def head(self) -> Node:
        assert self.cluster is not None
        return self.cluster.nodes[0]

    @property
    def worker(self) -> Node:
        assert self.cluster is not None
        return self.cluster.nodes[-1]

    def replace_worker(self) -> None:
        """Another machine, for the one that is gone."""
        assert self.cluster is not None
        self.cluster.nodes.pop().kill()
        self._add()

    def restart(self) -> None:
        """All of it anew, at the same address."""
        assert self.cluster is not None
        self.cluster.stop()
        self._start(self.cluster.port)

    def stop(self) -> None:
        if self.cluster is not None:
            self.cluster.stop()

    def _start(self, port: int | None = None) -> Cluster:
        env = {"PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}", inject.FOLDER: str(self.folder / "faults")}
        self.cluster = Cluster(self.folder / f"ray-{self.n_nodes}", cpus=0, extra_env=env)
        self.cluster.port = port or self.cluster.port
        self.cluster.start()
        self._add()
        return self.cluster

    def _add(self) -> None:
        assert self.cluster is not None
        self.n_nodes += 1
        self.cluster.add_node(f"worker-{self.n_nodes}", CPUS)


def _in_the_middle(lab: Lab) -> tuple[Running, int]:
    """As `in_the_middle`, when the last checkpoint before has arrived: uploads run beside the steps."""
    process, worker = in_the_middle(lab, forked=False)
    newest = f"step-{MIDDLE - 1 - (MIDDLE - 1) % CHECKPOINT_STEPS:08d}"
    lab.until(process, lambda: any(newest in path.read_text() for path in lab.place.store.glob(SNAPSHOTS)))
    return process, worker


def _go_without(lab: Lab, worker: int) -> None:
    """End what holds others, once Ray has ended the worker of a stage whose coordinator it has lost."""
    while psutil.pid_exists(worker):
        time.sleep(LOOK_EVERY_S)
    lab.go()


def train_worker(lab: Lab, machines: Machines) -> None:
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    lab.strikes()
    os.kill(worker, signal.SIGKILL)
    lab.go()
    lab.must_end_well(process)


def worker_out_of_memory(lab: Lab, machines: Machines) -> None:
    machines.join(lab)
    lab.plan(MIDDLE, "memory")
    process = lab.start(forked=False)
    lab.until_fired(process)
    lab.strikes()
    lab.must_end_well(process)


def controller(lab: Lab, machines: Machines) -> None:
    """The stage's task: it controls the worker group and holds the stage's lease."""
    cluster = machines.join(lab)
    process, worker = _in_the_middle(lab)
    doomed = [each for node in cluster.nodes for each in node.processes() if _is_controller(each)]
    assert doomed, [_title(each) for node in cluster.nodes for each in node.processes()]
    lab.strikes()
    for each in doomed:
        each.kill()
    _go_without(lab, worker)
    lab.must_end_well(process)


def raylet(lab: Lab, machines: Machines) -> None:
    """The node that trains is lost; another comes."""
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    [doomed] = [p for p in machines.worker.processes() if p.name() == "raylet"]
    lab.strikes()
    doomed.kill()
    _go_without(lab, worker)
    machines.replace_worker()
    lab.must_end_well(process)


def driver(lab: Lab, machines: Machines) -> None:
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    lab.strikes()
    process.send(signal.SIGKILL)
    lab.must_end(process, -signal.SIGKILL)
    _go_without(lab, worker)
    lab.again(forked=False)


def interrupt_twice(lab: Lab, machines: Machines) -> None:
    """The second while the first one's closing is under way."""
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    lab.strikes()
    process.send(signal.SIGINT)
    while "interrupted" not in process.out and process.is_alive:
        time.sleep(LOOK_EVERY_S)
    process.send(signal.SIGINT)
    lab.must_end(process, 130)
    assert f"bam run {lab.place.recipe}" in process.err, process.err
    _go_without(lab, worker)
    lab.again(forked=False)


def terminated(lab: Lab, machines: Machines) -> None:
    """Ray has a handler of its own for this signal."""
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    lab.strikes()
    process.send(signal.SIGTERM)
    lab.must_end(process, 130)
    assert f"bam run {lab.place.recipe}" in process.err, process.err
    _go_without(lab, worker)
    lab.again(forked=False)


def head(lab: Lab, machines: Machines) -> None:
    """With it goes what Ray knows; a new head at the same address, and the same command."""
    machines.join(lab)
    process, worker = _in_the_middle(lab)
    lab.strikes()
    machines.head.kill()
    lab.must_end(process, 1)
    assert f"bam run {lab.place.recipe}" in process.err, process.err
    machines.restart()
    _go_without(lab, worker)
    machines.join(lab)
    lab.again(forked=False)


def _is_controller(process: psutil.Process) -> bool:
    return _title(process).startswith(("ray::expert.code", "ray::TrainController"))


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""
