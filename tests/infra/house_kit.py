"""A store with three runs of one recipe, made by hand: what `bam gc` has to judge.

run    seed  expert.law  mix.bam  train.bam
one    1     1           1        1
two    1     2           2        2
three  1     3           3        3
"""

from __future__ import annotations

from collections.abc import Sequence

from bam_core.graph.holdings import Node, node_of
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.runs import Run, RunStage
from infra.store import ArtifactStore

MADE = 1_700_000_000.0
CHAIN = ("seed", "expert.law", "mix.bam", "train.bam")
FILES = {"model.safetensors": b"weights of ", "train/00000.arrow": b"rows of "}


def key_of(stage: str, version: int = 1) -> str:
    return f"{version:x}{stage.encode().hex()}".ljust(64, "0")


def node(stage: str, version: int = 1) -> Node:
    return node_of(stage, key_of(stage, version))


def name(stage: str, version: int = 1) -> str:
    return "@".join(node(stage, version))


def make(store: ArtifactStore, stage: str, version: int, parents: Sequence[Record], ended: float = MADE) -> Record:
    key = key_of(stage, version)
    with store.scratch(stage, key) as folder:
        for path, data in FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data + f"{stage} {version}".encode())
        outputs = store.hash_outputs(folder)
        record = Record(
            stage=stage,
            key=key,
            payload={"config": {"version": version}},
            inputs={parent.stage: parent.ref for parent in parents},
            outputs=outputs,
            digest=artifact_digest(outputs),
            metrics={"loss": 1.5},
            provenance={"run": f"quick-{version}", "pipeline": "quick"},
            started=ended - 1,
            ended=ended,
            attempt=1,
        )
        store.commit(folder, record)
    attempt = store.attempt_dir(stage, key, 1)
    (attempt / "log.txt").write_text("done\n")
    store.close_attempt(stage, key, 1, None)
    return record


def a_run(version: int, stages: Sequence[str] = CHAIN, *, status: str = "done") -> Run:
    planned: dict[str, RunStage] = {}
    for stage in stages:
        parents = [(parent, version_of(parent, version)) for parent in CHAIN[: CHAIN.index(stage)][-1:]]
        inputs = {parent: (parent, key_of(parent, number)) for parent, number in parents}
        number = version_of(stage, version)
        planned[stage] = RunStage(key_of(stage, number), "reuse" if number < version else "run", inputs)
    ended = None if status == "running" else MADE + version + 5
    return Run(f"quick-{version}", "quick", status, MADE + version, ended, {}, planned, {})  # type: ignore[arg-type]


def version_of(stage: str, version: int) -> int:
    """All runs share the seed."""
    return 1 if stage == "seed" else version


def three_runs(store: ArtifactStore, versions: Sequence[int] = (1, 2, 3)) -> dict[Node, Record]:
    made: dict[Node, Record] = {}
    for version in versions:
        before: list[Record] = []
        for stage in CHAIN:
            number = version_of(stage, version)
            there = made.get(node(stage, number))
            made[node(stage, number)] = there or make(store, stage, number, before, MADE + version)
            before = [made[node(stage, number)]]
        store.runs.write(a_run(version))
    return made


def require_whole(store: ArtifactStore) -> None:
    """Each record that is there is as it was written, and so is all that it was made from."""
    records = {node_of(record.stage, record.key): record for record in store.records()}
    for record in records.values():
        assert store.verify(record) == [], record.stage
        for given in record.inputs.values():
            assert node_of(given.stage, given.key) in records, f"{record.stage} has lost {given.stage}"
