"""Every fault of the table: what it is called, what breaks it, and where it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import clusters, drivers, services, stages
from tests.faults.clusters import Machines
from tests.faults.lab import Lab


@dataclass(frozen=True)
class Fault:
    """breaks: does the damage and has the command go on, on the local executor.

    is_long: takes more than half a minute, or is one of several of a kind; `make test` leaves it out, since together
    they take three minutes.
    """

    name: str
    breaks: Callable[[Lab], None]
    is_long: bool = False


LOCAL = (
    Fault("kill -9 of the driver", drivers.kill),
    Fault("SIGTERM", drivers.terminate),
    Fault("ctrl-C", drivers.interrupt, is_long=True),
    Fault("ctrl-C twice", drivers.interrupt_twice, is_long=True),
    Fault("full disk", services.disk_full, is_long=True),
    Fault("NaN in the loss", stages.nan_in_the_loss, is_long=True),
    Fault("out of memory in a stage", stages.out_of_memory, is_long=True),
    Fault("truncated file of an artifact", stages.truncated_file, is_long=True),
    Fault("missing file of an artifact", stages.missing_file, is_long=True),
    Fault("changed file of an artifact", stages.changed_file),
    Fault("torn record.json", stages.torn_record, is_long=True),
    Fault("two runs at once", stages.two_runs_at_once),
    Fault("two runs, clock an hour ahead", stages.clock_an_hour_ahead, is_long=True),
    Fault("two runs, clock an hour behind", stages.clock_an_hour_behind, is_long=True),
    Fault("killed with a clock an hour ahead", stages.killed_by_a_wrong_clock, is_long=True),
    Fault("expired lease, owner wakes up later", stages.owner_wakes_up, is_long=True),
    Fault("expired lease, owner wakes up at once", stages.owner_wakes_up_too_early, is_long=True),
    Fault("store (S3) away for 20 s", services.store_away_for_20_s, is_long=True),
    Fault("store (S3) away for good", services.store_away_for_good, is_long=True),
    Fault("S3: 500 inside an upload", services.upload_answered_500, is_long=True),
    Fault("S3: 503 SlowDown inside an upload", services.upload_told_to_slow_down, is_long=True),
    Fault("S3: connection cut inside an upload", services.upload_cut, is_long=True),
    Fault("S3: answer to an upload lost", services.upload_whose_answer_is_lost),
    Fault("MLflow down", services.mlflow_down, is_long=True),
    Fault("MLflow slow (no answer)", services.mlflow_slow, is_long=True),
    Fault("MLflow restarted", services.mlflow_restarted, is_long=True),
)


@dataclass(frozen=True)
class ClusterFault:
    """The same on a Ray cluster; `breaks` leaves it as able as it was."""

    name: str
    breaks: Callable[[Lab, Machines], None]


CLUSTER = (
    ClusterFault("kill -9 of a train worker", clusters.train_worker),
    ClusterFault("out of memory in a train worker", clusters.worker_out_of_memory),
    ClusterFault("kill -9 of a controller", clusters.controller),
    ClusterFault("kill -9 of a raylet", clusters.raylet),
    ClusterFault("kill -9 of the driver", clusters.driver),
    ClusterFault("SIGTERM to the driver", clusters.terminated),
    ClusterFault("ctrl-C twice", clusters.interrupt_twice),
    ClusterFault("kill -9 of the head", clusters.head),
)
