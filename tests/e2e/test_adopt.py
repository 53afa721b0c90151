"""An expert of another team, end to end: adopted from a second store, mixed, trained, evaluated, traced back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kit import Answer, Place
from tests.infra.exchange_kit import reseal

NAME = "law-by-other-team"
STAGE = f"adopted.{NAME}"
USE = ("--set", f"domains.law.expert={NAME}")


def ok(answer: Answer) -> Answer:
    assert answer.status == 0, answer.err
    return answer


@pytest.fixture
def ours(up_to: Callable[..., Place], finished: Place) -> Place:
    """A store of our own with what the expert of law branched from, and that expert adopted from the finished run."""
    place = up_to("tokenizer", "data.*", "seed", "expert.code")
    ok(place.bam("adopt", NAME, f"{finished.store}#expert.law"))
    return place


def test_it_is_mixed_as_if_it_were_ours(ours: Place, finished: Place) -> None:
    """The weights are those of the expert that we would have trained, so the mixture's are too."""
    answer = ok(ours.run("--until", "mix.bam", *USE))
    assert answer.actions()[STAGE] == "reuse"
    assert not ours.artifacts("expert.law")
    made, usual = ours.artifact("mix.bam"), finished.artifact("mix.bam")
    assert (made / "model.safetensors").read_bytes() == (usual / "model.safetensors").read_bytes()
    metrics, same = (place.record("mix.bam")["metrics"] for place in (ours, finished))
    for cost in ("lineage_tokens", "lineage_flops"):
        assert metrics[cost] == same[cost]


def test_its_lineage_crosses_the_stores(ours: Place, finished: Place, tmp_path: Path) -> None:
    ok(ours.run("--until", "mix.bam", *USE))
    graph = json.loads(ok(ours.bam("lineage", "mix.bam", "--format", "json")).out)
    stores = {node["stage"]: node["store"] for node in graph["nodes"] if not node["missing"]}
    assert stores[STAGE] is None
    assert stores["seed"] is None
    assert stores["expert.law"] == str(finished.store)
    edges = {(edge["from"]["stage"], edge["role"]) for edge in graph["edges"] if edge["to"]["stage"] == STAGE}
    assert edges == {("seed", "seed"), ("expert.law", "origin")}
    ok(ours.bam("expert", "extract", "mix.bam", "law", str(tmp_path / "law")))
    theirs = finished.artifact("expert.law") / "model.safetensors"
    assert (tmp_path / "law" / "model.safetensors").read_bytes() == theirs.read_bytes()


def test_a_seed_that_comes_out_as_it_was_is_what_it_was_adopted_for(ours: Place) -> None:
    """Also of a forced run: what was adopted is never made again."""
    for folder in ours.artifacts("seed"):
        (folder / "record.json").unlink()
    answer = ok(ours.run("--until", "mix.bam", *USE))
    assert answer.actions()["seed"] == "run"
    assert ours.artifact(STAGE)
    ok(ours.run("--only", "seed", "--only", STAGE, "--only", "mix.bam", "--force", "seed", *USE))
    assert sum(1 for _ in ours.artifact(STAGE).glob("attempts/*")) == 0


def test_another_seed_is_refused_before_anything_is_trained(ours: Place) -> None:
    before = ours.attempts()
    answer = ours.run("--set", "seed=1", *USE)
    assert (answer.status, answer.out) == (2, "")
    assert f"domains.law.expert: '{NAME}': was adopted for seed@{ours.artifact('seed').name}" in answer.err
    assert ours.attempts() == before


def test_a_seed_that_was_made_again_with_other_bytes_is_not_what_it_was_adopted_for(ours: Place) -> None:
    folder, outputs = ours.artifact("seed"), ours.record("seed")["outputs"]
    card = b"# another seed"
    (folder / "MODEL_CARD.md").write_bytes(card)
    other = {"path": "MODEL_CARD.md", "size": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    reseal(folder, outputs=[other if output["path"] == other["path"] else output for output in outputs])
    answer = ours.plan(*USE)
    assert (answer.status, answer.out) == (2, "")
    assert "was adopted for a seed of other bytes than the one that is there now" in answer.err


@pytest.mark.long
def test_the_whole_pipeline_with_it(ours: Place, finished: Place) -> None:
    ok(ours.run(*USE))
    assert not ours.artifacts("expert.law")
    found = json.loads(ours.perplexity())["models"]
    usual = json.loads(finished.perplexity())["models"]
    assert found[STAGE]["domains"] == usual["expert.law"]["domains"]
    for cost in ("lineage_tokens", "lineage_flops"):
        assert found["ensemble"][cost] == usual["ensemble"][cost]
        assert found["train.bam"][cost] == usual["train.bam"][cost]
    page = (ours.artifact("report") / "report.html").read_text()
    assert STAGE in page
    tree = json.loads(ok(ours.bam("blame", "train.bam", "blocks.0.ffn.w_up[law]", "--json")).out)
    chain = []
    while tree is not None:
        chain.append((tree["stage"], tree["op"]))
        tree = tree["parents"][0] if tree["parents"] else None
    assert chain[2:4] == [(STAGE, "adopted"), ("seed", "trained")]
