"""Shares that change while mixtures train, from the recipe to the report: by the losses, by a plan, and searched."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.kit import DOMAINS, Place, merged

RULE = {"adaptive": {"every": 4, "rate": 2.0, "floor": 0.1, "eval_tokens": 128}}
PLAN = {"start": "uniform", "end": {"law": 1.0}}
SEARCH = {
    "stage": "train.bam",
    "search": {"phases.mixture.data.adaptive.rate": {"choice": [0.5, 3.0]}},
    "trials": 2,
    "rungs": 1,
    "tokens": 8 * 256,
    "eval_tokens": 256,
}


@pytest.fixture
def changing(up_to: Callable[..., Place]) -> Place:
    place = up_to("tokenizer", "data.*", "seed", "expert.*", "mix.*")
    changes: dict[str, Any] = {
        "phases": {"mixture": {"data": None}},
        "variants": {"btx": {"train": {"data": PLAN}}},
        "tune": {"rate": SEARCH},
    }
    recipe = merged(place.recipe_dict(), changes)
    recipe["phases"]["mixture"]["data"] = RULE
    place.set_recipe(recipe)
    return place


def training(place: Place, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.artifact(stage) / "training.json").read_text())
    return found


def test_a_run_whose_data_changes(changing: Place, finished: Place) -> None:
    planned = changing.plan()
    assert planned.json["data"]["train.btx"] == "from uniform to law 1 on a straight line"
    assert planned.json["data"]["dense"].startswith(
        "from uniform, every 4 steps by the loss above that of its own model"
    )
    answer = changing.run()
    assert answer.status == 0, answer.err
    assert set(changing.run().actions().values()) == {"reuse"}

    best = json.loads((changing.artifact("tune.rate") / "best.json").read_text())["values"]
    for stage in ("train.bam", "dense"):
        found = training(changing, stage)
        assert found["phase"]["adaptive"]["rate"] == best["phases.mixture.data.adaptive.rate"]
        assert [part["step"] for part in found["data_path"]] == [0, 4, 8]
        for part in found["data_path"]:
            assert set(part["losses"]) == set(part["shares"]) == set(DOMAINS)
            assert sum(part["shares"].values()) == pytest.approx(1)
            assert min(part["shares"].values()) > 0.1 - 1 / 32  # 4 steps of 8 rows
        assert len({json.dumps(part["shares"]) for part in found["data_path"]}) == 3
        for entry in found["history"]:
            now = [part for part in found["data_path"] if part["step"] < entry["step"]][-1]
            assert {name: entry[f"data/{name}"] for name in DOMAINS} == now["shares"]
        record, usual = changing.record(stage), finished.record(stage)
        assert {role for role in record["inputs"] if role.startswith("reference.")} == {
            f"reference.{domain}" for domain in DOMAINS
        }
        more = record["metrics"]["train_flops"] - usual["metrics"]["train_flops"]
        assert 0 < more < 0.5 * usual["metrics"]["train_flops"]
        assert record["metrics"]["train_flops"] == planned.json["models"][stage]["train_flops"]
        assert record["metrics"]["lineage_tokens"] == usual["metrics"]["lineage_tokens"]
        card = (changing.artifact(stage) / "MODEL_CARD.md").read_text()
        assert "reference." not in card
        assert "| data | at first code 33%, general 33%, law 33%; then by the loss on each domain |" in card

    path = training(changing, "train.btx")["data_path"]
    assert [part["step"] for part in path] == list(range(12))
    assert [part["shares"]["law"] for part in path] == sorted(part["shares"]["law"] for part in path)
    assert path[-1]["shares"] == {"code": 0, "general": 0, "law": 1}
    assert (
        changing.record("train.btx")["metrics"]["train_flops"] == finished.record("train.btx")["metrics"]["train_flops"]
    )

    with (changing.artifact("report") / "tables" / "data_path.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"train.bam", "train.btx", "dense"}
    assert (changing.artifact("report") / "figures" / "data-dense.svg").is_file()
