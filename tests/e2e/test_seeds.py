"""A recipe with several seeds: one seed's artifacts are taken as they are, another's are made beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import MODELS, Place, recipe_dict, write_recipe, write_texts

CM = {"like": "bam", "train": {"match": "compute", "match_to": "btx"}}
OF_NO_SEED = ("tokenizer", "data.", "overlap", "report")


def study(texts: Path) -> dict[str, Any]:
    """Few steps, one specialist, a variant that shares the mixture of another."""
    recipe = recipe_dict(texts)
    for phase in recipe["phases"].values():
        phase["tokens"] = 6 * 256
    del recipe["domains"]["code"], recipe["seed"]
    recipe["variants"] |= {"bam_cm": CM}
    return recipe


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Run with seed 3 alone."""
    folder = tmp_path_factory.mktemp("seeds")
    write_texts(folder / "texts")
    place = Place(write_recipe(folder / "tiny.yaml", study(folder / "texts") | {"seed": 3}), folder / "store")
    answer = place.run()
    assert answer.status == 0, answer.err
    return place


@pytest.fixture(scope="module")
def two_seeds(one_seed: Place) -> Place:
    """The same place, then run with another seed beside it, by a recipe that extends the first."""
    own = write_recipe(one_seed.recipe.parent / "two.yaml", {"extends": "tiny.yaml", "seeds": [3, 1]})
    place = Place(own, one_seed.store)
    planned = place.plan()
    answer = place.run()
    assert answer.status == 0, answer.err
    ran = {name for name, action in planned.actions().items() if action == "run"}
    assert all(name.endswith(".s1") or name == "report" for name in ran)
    assert {name for name, stage in answer.stages().items() if stage["status"] == "done"} == ran
    return place


def perplexity(place: Place, stage: str) -> dict[str, Any]:
    return json.loads((place.artifact(stage) / "perplexity.json").read_text())["models"]


def test_a_second_run_makes_nothing(two_seeds: Place) -> None:
    answer = two_seeds.run()
    assert answer.status == 0, answer.err
    assert {stage["status"] for stage in answer.stages().values()} == {"reused"}


def test_everything_that_depends_on_a_seed_is_there_for_each(two_seeds: Place) -> None:
    names = set(two_seeds.plan().actions())
    plain = {name for name in names if not name.endswith(".s1")}
    assert names - plain == {f"{name}.s1" for name in plain if not name.startswith(OF_NO_SEED)}
    assert all(two_seeds.is_done(name) for name in names)


def test_each_evaluation_is_of_its_own_seeds_models(two_seeds: Place) -> None:
    first, second = perplexity(two_seeds, "evaluate"), perplexity(two_seeds, "evaluate.s1")
    wanted = {*MODELS, "train.bam_cm", "ensemble"} - {"expert.code"}
    assert first.keys() == second.keys() == wanted
    for name in wanted:
        assert (first[name]["seeds"], second[name]["seeds"]) == ([3], [1])
        assert first[name]["average_perplexity"] != second[name]["average_perplexity"]
        assert first[name]["params_total"] == second[name]["params_total"]
        assert first[name]["lineage_flops"] == second[name]["lineage_flops"] or name == "ensemble"


def test_the_report_is_of_both(two_seeds: Place) -> None:
    record = json.loads(
        max(two_seeds.artifacts("report"), key=lambda f: f.stat().st_mtime).joinpath("record.json").read_text()
    )
    assert {"evaluate", "evaluate.s1", "train.bam"} <= record["inputs"].keys()
    report = two_seeds.run().json["report"]
    assert "tiny" in Path(report).read_text()
    costs = (Path(report).parent / "tables" / "costs.csv").read_text()
    assert "train.bam.s1," in costs
    assert "train.bam," in costs


def test_variants_that_are_mixed_alike_start_from_one_mixture(two_seeds: Place) -> None:
    for suffix in ("", ".s1"):
        record = two_seeds.record(f"train.bam_cm{suffix}")
        assert record["inputs"]["mix"]["stage"] == f"mix.bam{suffix}"
        tokens = {
            name: two_seeds.record(f"train.{name}{suffix}")["metrics"]["train_tokens"] for name in ("bam", "bam_cm")
        }
        assert tokens["bam_cm"] < tokens["bam"]
    assert not two_seeds.artifacts("mix.bam_cm")


def test_one_stage_of_a_seed_can_be_made_again_and_given_other_inputs(two_seeds: Place) -> None:
    before = {path.name for path in two_seeds.artifacts("train.btx.s1")}
    answer = two_seeds.bam("stage", "train.btx.s1", str(two_seeds.recipe), "--json")
    assert answer.stages()["train.btx.s1"]["status"] == "reused"
    given = two_seeds.bam("stage", "train.btx.s1", str(two_seeds.recipe), "--input", "mix=mix.btx", "--json")
    assert given.status == 0, given.err
    [new] = {path.name for path in two_seeds.artifacts("train.btx.s1")} - before
    made = json.loads((two_seeds.store / "artifacts" / "train.btx.s1" / new / "record.json").read_text())
    assert made["inputs"]["mix"]["stage"] == "mix.btx"


def test_what_is_asked_of_an_artifact_is_answered_for_any_seed(two_seeds: Place) -> None:
    lineage = two_seeds.bam("lineage", "train.bam.s1")
    assert lineage.status == 0, lineage.err
    assert "expert.law.s1" in lineage.out
    assert "seed.s1" in lineage.out
    blamed = two_seeds.bam("blame", "mix.bam.s1", "blocks.0.attn.w_q[law]")
    assert blamed.status == 0, blamed.err
    assert "expert.law.s1" in blamed.out
    card = two_seeds.bam("card", "train.bam.s1")
    assert card.status == 0, card.err
    assert "evaluate.s1@" in card.out
    assert "train.bam.s1" in two_seeds.bam("ls").out
    assert two_seeds.bam("verify", "train.bam.s1").status == 0
    diff = two_seeds.bam("diff", "train.bam", "train.bam.s1")
    assert diff.status in (0, 1), diff.err
    assert "seed" in diff.out


def test_a_plan_shows_each_model_once(two_seeds: Place) -> None:
    shown = two_seeds.bam("plan", str(two_seeds.recipe)).out
    assert "2 seeds: 3 under the plain names, 1 as *.s1" in shown
    assert sum(line.split()[:1] == ["train.bam.s1"] for line in shown.splitlines()) == 1, "among the stages alone"
    planned = two_seeds.plan().json
    assert not any(name.endswith(".s1") for name in planned["models"])
    assert planned["recipe"]["seeds"] == [3, 1]
    assert planned["recipe"]["variants"]["bam_cm"]["attention"] == planned["recipe"]["variants"]["bam"]["attention"]
