"""A path that a store's files give never leads out of its folder: refused in words, nothing read, nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bam_core.checkpoint import open_tensors
from bam_core.errors import ArtifactDamaged
from bam_core.graph.record import Output, artifact_digest, record_checksum
from bam_core.graph.stage import Resources
from infra.store import ArtifactStore
from tests.e2e.kit import Place

SECRET = b"not for this run"
CLIMBING = (
    "../../../../outside.txt",
    "train/../../../../../outside.txt",
    "/etc/passwd",
    "~/outside.txt",
    "..\\outside.txt",
    "C:outside.txt",
    "file:///etc/passwd",
    "",
    ".",
)


@pytest.fixture
def outside(done: Place) -> Path:
    """What `../../../../outside.txt` is, seen from an artifact."""
    file = done.store.parent / "outside.txt"
    file.write_bytes(SECRET)
    return file


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """With a checksum that holds, as somebody who means it would write it."""
    path.write_text(json.dumps(record | {"checksum": record_checksum(record)}))


def forge(folder: Path, path: str, content: bytes) -> None:
    """Add an output to the record, with the size and the digest of `content`."""
    record = json.loads((folder / "record.json").read_text())
    record["outputs"].append({"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    record["digest"] = artifact_digest([Output(**output) for output in record["outputs"]])
    write_sealed(folder / "record.json", record)


@pytest.mark.parametrize("path", CLIMBING)
def test_a_record_that_climbs_out_is_refused(done: Place, outside: Path, path: str, tmp_path: Path) -> None:
    forge(done.artifact("seed"), path, SECRET)
    for words in (("get", "seed", str(tmp_path / "copy")), ("verify", "seed"), ("show", "seed")):
        answer = done.bam(*words)
        assert answer.status != 0, (words, answer.out)
        assert "Traceback" not in answer.err
    assert not (tmp_path / "copy").exists()
    plan = done.plan()
    [seed] = [stage for stage in plan.json["stages"] if stage["stage"] == "seed"]
    assert seed["action"] == "run"
    assert "leaves the artifact's folder" in json.dumps(seed)
    assert outside.read_bytes() == SECRET


def test_a_remote_record_that_climbs_out_is_not_downloaded(
    done: Place, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forge(done.artifact("seed"), CLIMBING[0], SECRET)
    memory = fsspec.filesystem("memory")
    memory.put(f"{done.store}/artifacts", "/hostile/artifacts", recursive=True)
    try:
        key = json.loads((done.artifact("seed") / "record.json").read_text())["key"]
        with pytest.raises(ArtifactDamaged, match="leaves the artifact's folder"):
            ArtifactStore("memory://hostile").record("seed", key)
        assert not (tmp_path / "cache").exists()
    finally:
        memory.rm("/hostile", recursive=True)


@pytest.mark.parametrize("name", ["../../../outside", "/etc", "a/b", "", 7])
@pytest.mark.parametrize("where", ["stage", "key", "inputs"])
def test_a_record_that_names_no_artifact_is_named_and_no_other_one_suffers(
    done: Place, name: str | int, where: str
) -> None:
    folder = done.artifact("seed")
    record = json.loads((folder / "record.json").read_text())
    hostile = {"tokenizer": {"stage": "tokenizer", "key": name, "digest": ""}} if where == "inputs" else name
    write_sealed(folder / "record.json", record | {where: hostile})
    plan = done.plan()
    assert plan.status == 0, plan.err
    assert plan.actions()["seed"] == "run"
    assert "which no artifact can be" in json.dumps(plan.stages()["seed"])
    assert done.bam("show", "tokenizer").status == 0


@pytest.mark.parametrize("shard", CLIMBING)
def test_an_index_of_weights_that_climbs_out_is_refused(done: Place, tmp_path: Path, shard: str) -> None:
    folder = shutil.copytree(done.artifact("seed"), tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed.weight": shard}}))
    with pytest.raises(ArtifactDamaged, match="leaves the artifact's folder"):
        open_tensors(folder)


def snapshot(*names: str) -> dict[str, Any]:
    """Ray Train's list of checkpoints, as far as it matters here."""
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    return {"checkpoint_results": results, "latest_checkpoint_result": results[-1], "ray_version": "2.60.0"}


@pytest.mark.parametrize("name", ["../../../outside", "/etc", "~", "step-00000001/../../x", "..", ""])
def test_rays_list_of_checkpoints_may_name_its_own_only(tmp_path: Path, name: str) -> None:
    from infra.ray_snapshot import require_own_checkpoints

    folder = tmp_path / "seed-0123456789ab" / "run"
    folder.mkdir(parents=True)
    require_own_checkpoints(str(folder))
    file = folder / "checkpoint_manager_snapshot.json"
    file.write_text(json.dumps(snapshot("step-00000001", "finished")))
    require_own_checkpoints(str(folder))
    for hostile in (
        snapshot(name, "step-00000001"),
        snapshot("step-00000001") | {"validated_checkpoint_dir_names": [name]},
    ):
        file.write_text(json.dumps(hostile))
        with pytest.raises(ArtifactDamaged, match="no folder of this training; remove that folder"):
            require_own_checkpoints(str(folder))


def test_rays_list_of_checkpoints_that_is_cut_off_is_named(tmp_path: Path) -> None:
    from infra.ray_snapshot import require_own_checkpoints

    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot("finished"))[:40])
    with pytest.raises(ArtifactDamaged, match="not JSON"):
        require_own_checkpoints(str(tmp_path))


@pytest.mark.ray
def test_ray_is_not_given_a_list_that_names_another_folder(ray_cluster: None, tmp_path: Path) -> None:
    """Ray keeps two checkpoints: of these three it would delete the first."""
    from infra.ray_train import RayTrainer

    victim, run = tmp_path / "victim", tmp_path / "training" / "seed-0123456789ab"
    for folder in (victim, run / "step-00000001", run / "step-00000002"):
        folder.mkdir(parents=True)
    hostile = snapshot("../../victim", "step-00000001", "step-00000002")
    (run / "checkpoint_manager_snapshot.json").write_text(json.dumps(hostile))
    trainer = RayTrainer(str(run), dict, lambda step, metrics: None, tmp_path / "nowhere")
    with pytest.raises(ArtifactDamaged, match="is no folder of this training"):
        trainer.fit(lambda worker, config: pytest.fail("trained"), {}, Resources(trains=True), tmp_path / "out")
    assert victim.is_dir()
