"""`bam plan --on` and `bam doctor --calibrate`: what a plan takes on a cluster, and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bam_core.planner.estimate import seconds
from pipelines.recipe import load_recipe
from pipelines.wiring import Settings, calibrating, make_plan
from pipelines.wiring.cluster_files import open_cluster
from pipelines.wiring.estimating import forecast
from pipelines.wiring.planning import Selection
from pipelines.workload import TextFacts, n_masks, works
from tests.cli.conftest import Bam
from tests.core.test_planner import BAM, BTX, DENSE, DEVICE
from tests.e2e.kit import NO_MLFLOW, STAGES, recipe_dict, write_recipe, write_texts


@pytest.fixture
def recipe(here: Path) -> Path:
    write_texts(here / "texts")
    return write_recipe(here / "tiny.yaml", recipe_dict(here / "texts"))


@pytest.fixture
def on(here: Path) -> Any:
    """`on(memory="1G")`: a cluster file of two nodes with this, and a calibration beside it."""
    (here / "calibration.json").write_text(json.dumps(DEVICE.to_json()))

    def write(**changed: Any) -> str:
        node = {"name": "n", "count": 2, "cpus": 2, "memory": "8G", "price_per_hour": 3.6, "watts": 100}
        path = here / "cluster.yaml"
        path.write_text(yaml.safe_dump({"nodes": [node | {"calibration": "calibration.json"} | changed]}))
        return str(path)

    return write


def test_every_stage_has_its_time_memory_cost_and_energy(bam: Bam, recipe: Path, on: Any) -> None:
    done = bam("plan", recipe, "--on", on(), "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)["forecast"]
    assert [stage["stage"] for stage in found["stages"]] == list(STAGES)
    for stage in found["stages"]:
        assert stage["seconds"] > 0
        assert stage["cost"] == pytest.approx(stage["seconds"] * 3.6 / 3600 / 2), "one of two CPUs"
        assert stage["energy_wh"] == pytest.approx(stage["seconds"] * 100 / 3600 / 2)
        assert sum(stage["memory"]["parts"].values()) >= DEVICE.idle("local")
    assert found["critical_s"] <= found["wall_s"] <= sum(stage["seconds"] for stage in found["stages"])
    assert found["cost"] == pytest.approx(2 * found["wall_s"] * 3.6 / 3600)
    text = bam("plan", recipe, "--on", on()).out
    assert "longest chain" in text
    assert "all nodes for that time" in text


def test_one_after_another_on_the_local_executor(bam: Bam, recipe: Path, on: Any) -> None:
    done = bam("plan", recipe, "--on", on(), "--executor", "local", "--json")
    found = json.loads(done.out)["forecast"]
    assert found["wall_s"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))


def test_refused_with_all_that_does_not_fit(bam: Bam, recipe: Path, on: Any) -> None:
    large = ("model.d_model=512", "model.d_ff=2048", "model.max_seq_len=512", "model.n_heads=8")
    phases = ("seed", "expert", "mixture")
    larger = (*large, *(f"phases.{p}.{key}=8192" for p in phases for key in ("tokens", "batch_tokens")))
    sets = [word for change in larger for word in ("--set", change)]
    done = bam("plan", recipe, "--on", on(memory="1300M"), *sets)
    assert done.status == 2
    refused = {line.partition(":")[0]: line for line in done.err.splitlines()[1:]}
    assert "it fits with runtime.micro_batch_rows: " in refused["seed"]
    assert "no smaller batch, checkpointing or sharding makes it fit: add a node" in refused["train.bam"]
    assert "checkpointing" not in refused["evaluate"], "it trains nothing"
    assert "the most room is 1.3 GiB (n)" in refused["evaluate"]
    crowded = bam("plan", recipe, "--on", on(), "--set", "runtime.train.cpus=4")
    assert crowded.status == 2
    assert "train.btx: a worker group of 1 x 4 CPU can never fit" in crowded.err


def test_what_is_wrong_with_a_cluster_is_told_at_once(bam: Bam, recipe: Path, on: Any, here: Path) -> None:
    told = bam("plan", recipe, "--on", on(cpus=-1, memory="much", calibration="none.json")).err
    assert all(words in told for words in ("nodes.0.cpus: -1", "nodes.0.memory: 'much'"))
    assert "nodes.0.calibration: " in bam("plan", recipe, "--on", on(calibration="none.json")).err
    assert "is not JSON" in bam("plan", recipe, "--on", on(calibration="cluster.yaml")).err
    assert "cannot be read" in bam("plan", recipe, "--on", str(here / "no.yaml")).err
    assert "--on CLUSTER.yaml" in bam("plan", recipe, "--compare").err


def test_a_cluster_file_of_ray_takes_one_calibration_for_all(bam: Bam, recipe: Path, on: Any) -> None:
    on()
    ray = Path(__file__).parents[2] / "ray_cluster.yaml"
    assert "make one there with `bam doctor --calibrate" in bam("plan", recipe, "--on", ray).err
    done = bam("plan", recipe, "--on", ray, "--calibration", "calibration.json", "--json")
    assert done.status == 0, done.err
    assert {host for stage in json.loads(done.out)["forecast"]["stages"] for host in stage["hosts"]} <= {
        *(f"cpu_worker-{n}" for n in range(1, 5)),
        *(f"gpu_worker-{n}" for n in range(1, 5)),
    }


def test_counts_follow_the_recipe(recipe: Path, on: Any) -> None:
    loaded = load_recipe(str(recipe), ["runtime.checkpoint_steps=5", "runtime.micro_batch_rows=2"])
    plan = make_plan(loaded, Settings("store", NO_MLFLOW[1]), Selection())
    facts = {name: TextFacts([4000] * 10, 0.5) for name in loaded.texts}
    counted = works(loaded, plan.pipeline, facts, bytes_per_token=4.0)
    seed = counted["seed"]
    assert (seed.steps, seed.checkpoints, seed.training.micro_batch_rows) == (20, 3, 2)
    assert counted["tokenizer"].text_bytes == counted["data.law"].text_bytes == 40_000
    assert counted["overlap"].text_bytes == 120_000
    assert len(counted["mix.bam"].passes) == 1 + 3
    assert counted["mix.btx"].written < counted["mix.bam"].written
    # 1000 tokens of each document by windows of 32 that move by 16: 32 + 61 * 32 positions for 1000 tokens, of 1000.
    assert counted["evaluate"].passes[0].tokens == pytest.approx(3 * 1000 * (32 + 61 * 32) / 1000)
    more = works(loaded, plan.pipeline, {name: TextFacts([8000] * 10) for name in loaded.texts}, bytes_per_token=4.0)
    for stage in plan.pipeline:
        assert seconds(more[stage.name], DEVICE, "local") >= seconds(counted[stage.name], DEVICE, "local") - 0.5 * 3


def test_masks_are_those_of_the_knock_out() -> None:
    from bam_core.evaluate.knock_out import masks

    for model in (DENSE, BTX, BAM):
        assert n_masks(model) == len(masks(model))


def test_a_text_that_was_not_read_is_said(recipe: Path, on: Any) -> None:
    loaded = load_recipe(str(recipe))
    plan = make_plan(loaded, Settings("store", NO_MLFLOW[1]), Selection())
    counted = works(loaded, plan.pipeline, {name: TextFacts((), whole=False) for name in loaded.texts}, 4.0)
    assert counted["data.law"].unknown == ("text of law beyond what was looked at",)


def test_calibrate_writes_what_plan_reads(
    bam: Bam, recipe: Path, on: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "calibrate", lambda settings, say: DEVICE)
    done = bam("doctor", "--calibrate", "--out", "machine.json")
    assert done.status == 0, done.err
    assert "a machine, 4 CPUs" in done.out
    kinds, read = open_cluster(Path(on(calibration="machine.json")))
    assert read == {"n": DEVICE}
    plan = make_plan(load_recipe(str(recipe)), Settings("store", NO_MLFLOW[1]), Selection())
    settings = Settings("store", executor="local")
    assert forecast(load_recipe(str(recipe)), plan, settings, kinds, read).wall_s > 0
    assert "its folder is not there" in bam("doctor", "--calibrate", "--out", "none/machine.json").err
