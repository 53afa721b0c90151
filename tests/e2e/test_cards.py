"""Model cards of real models: what they say, that they say nothing of where they were made, and how licences travel."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from huggingface_hub import ModelCard

from bam_core.checkpoint import made_by
from tests.e2e.kit import MODELS, Place
from tests.e2e.test_edit import ok

SEED_ONLY = ["| domain | source | digest of the text |", "Licences are told by `bam card`, not here: experts of other"]
"""What `bam card` tells better of a seed."""


def own(place: Place, stage: str) -> str:
    return (place.artifact(stage) / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("stage", MODELS)
def test_a_models_own_card_is_read_by_the_hubs_parser_and_names_no_place(finished: Place, stage: str) -> None:
    data = ModelCard(own(finished, stage)).data.to_dict()
    assert data["library_name"] == "bam"
    assert set(data["datasets"]) <= {"data.general", "data.code", "data.law"}
    assert data.get("license") == (None if stage == "seed" else "unknown")
    bases = {base.rpartition("-")[0] for base in data.get("base_model", ())}
    kind = stage.partition(".")[0]
    assert bases == {"seed": set(), "expert": {"seed"}, "dense": {"seed"}}.get(
        kind, {"seed", "expert.code", "expert.law"}
    )
    assert str(finished.recipe.parent) not in own(finished, stage)


@pytest.mark.parametrize("stage", ["mix.bam", "train.bam"])
def test_a_mixtures_card_has_its_rules_and_its_first_step(finished: Place, stage: str) -> None:
    card = own(finished, stage)
    mix = json.loads((finished.artifact("mix.bam") / "mix.json").read_text())
    found = mix["receipt"]["step0"]["perplexity"]["mixture"]["general"]
    assert f"| this mixture | {found:.2f} |" in card.replace("**", "")
    assert "`blocks.*.attn.{w_q, w_k, w_v, w_o}`" in card
    assert "stacked, one slice per expert | general, code, law |" in card
    assert "Every expert is in it, whole and in its place" in card


@pytest.mark.parametrize("stage", MODELS)
def test_what_the_store_gives_is_the_models_own_card_and_more(finished: Place, stage: str) -> None:
    shown = ok(finished.bam("card", stage)).out
    parts = ModelCard(own(finished, stage)).text.split("## Use and reproduce")[0].split("\n\n")
    told_here_only = [part.split(" stores are")[0].split("\n")[0] for part in parts if part.strip() not in shown]
    assert told_here_only == (SEED_ONLY if stage == "seed" else [])
    for title in ("## Evaluation", "## Reproduce", "## Provenance", "## Lineage"):
        assert title in shown
    assert ModelCard(shown).data.model_name.startswith(stage)


def test_a_licence_goes_from_the_recipe_to_the_card_of_each_model_made_since(done: Place) -> None:
    recipe = done.recipe_dict()
    recipe["domains"]["law"]["source"]["licence"] = "CC-BY-4.0"
    done.set_recipe(recipe)
    assert set(done.run().actions().values()) == {"reuse"}
    assert "| law | jsonl | CC-BY-4.0 |" in ok(done.bam("card", "train.bam")).out
    assert "| law | jsonl | not stated |" in own(done, "mix.bam")
    done.run("--only", "data.law", "--force", "data.law")
    assert done.record("data.law")["provenance"]["licence"] == "CC-BY-4.0"
    assert "licence" not in done.record("data.code")["provenance"]
    done.run("--only", "mix.bam", "--force", "mix.bam")
    assert "| law | jsonl | CC-BY-4.0 |" in own(done, "mix.bam")
    carried = {text["domain"]: text.get("licence") for text in made_by(done.artifact("mix.bam"))["texts"]}
    assert carried == {"general": None, "code": None, "law": "CC-BY-4.0"}
    done.run("--only", "train.bam", "--force", "train.bam")
    assert "| law | jsonl | CC-BY-4.0 |" in own(done, "train.bam")


def test_an_edited_and_an_extracted_model_carry_the_licences_along(done: Place) -> None:
    recipe = done.recipe_dict()
    recipe["domains"]["law"]["source"]["licence"] = "CC-BY-4.0"
    done.set_recipe(recipe)
    done.run("--only", "data.law", "--force", "data.law")
    done.run("--only", "mix.bam", "--force", "mix.bam")
    ok(done.bam("expert", "remove", "mix.bam", "code", "--as", "less"))
    assert "| law | jsonl | CC-BY-4.0 |" in own(done, "edit.less")
    assert "## Before and after" in own(done, "edit.less")
    folder = done.store.parent / "taken"
    ok(done.bam("expert", "extract", "mix.bam", "law", str(folder)))
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| law | jsonl | CC-BY-4.0 |" in card
    assert ModelCard(card).data.to_dict()["data_licences"][-1] == {"domain": "law", "licence": "CC-BY-4.0"}


def test_a_licence_leaves_the_seed_as_it_is_for_experts_of_other_stores_are_matched_by_it(done: Place) -> None:
    before = {stage: done.record(stage)["digest"] for stage in ("data.general", "seed", "expert.law")}
    recipe = done.recipe_dict()
    recipe["domains"]["general"]["source"]["licence"] = "CC-BY-4.0"
    done.set_recipe(recipe)
    done.run("--only", "data.general", "--force", "data.general")
    done.run("--only", "seed", "--force", "seed")
    done.run("--only", "expert.law", "--force", "expert.law")
    after = {stage: done.record(stage)["digest"] for stage in before}
    assert {stage for stage in before if before[stage] != after[stage]} == {"expert.law"}
    assert "| general | text | CC-BY-4.0 |" in ok(done.bam("card", "seed")).out


def test_the_card_of_an_adopted_expert_and_of_its_mixture(up_to: Callable[..., Place], finished: Place) -> None:
    ours = up_to("tokenizer", "data.*", "seed", "expert.code")
    ok(ours.bam("adopt", "theirs", f"{finished.store}#expert.law"))
    card = ok(ours.bam("card", "adopted.theirs")).out
    for part in (
        "The expert theirs, trained elsewhere and adopted from another store.",
        "| law | jsonl | not stated |",
        f"| `expert.law@{finished.artifact('expert.law').name}` |",
    ):
        assert part in card
    ok(ours.run("--until", "mix.bam", "--set", "domains.law.expert=theirs"))
    assert f"- adopted.theirs-{ours.artifact('adopted.theirs').name}\n" in own(ours, "mix.bam")
