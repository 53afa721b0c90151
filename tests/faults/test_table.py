"""Every fault of the table: nothing committed is lost, at most one checkpoint interval of training, the same bytes.

`python -m tests.faults` prints the table. What a fault is told of (exit status, words) is asserted where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import Place
from tests.faults.catalogue import CLUSTER, LOCAL, ClusterFault, Fault
from tests.faults.clusters import Machines
from tests.faults.lab import CHECKPOINT_STEPS, SMALLER, Outcome, new_lab, whole_run

pytest.importorskip("mlflow")


def require_nothing_lost(outcome: Outcome) -> None:
    assert outcome.made_again == (), "stages that were done were made again"
    if not outcome.broken:
        assert outcome.lost_steps <= CHECKPOINT_STEPS
    assert outcome.is_identical, "perplexity.json differs from the undisturbed one"


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.name, marks=[pytest.mark.long] if f.is_long else []) for f in LOCAL]
)
def test_fault(finished: Place, tmp_path: Path, fault: Fault) -> None:
    lab = new_lab(tmp_path, finished)
    try:
        fault.breaks(lab)
        require_nothing_lost(lab.outcome())
    finally:
        lab.close()


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return whole_run(tmp_path_factory.mktemp("smaller"), SMALLER)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    yield machines
    machines.stop()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in CLUSTER])
def test_fault_on_a_cluster(smaller: Place, machines: Machines, tmp_path: Path, fault: ClusterFault) -> None:
    lab = new_lab(tmp_path, smaller)
    try:
        fault.breaks(lab, machines)
        require_nothing_lost(lab.outcome())
    finally:
        lab.close()
