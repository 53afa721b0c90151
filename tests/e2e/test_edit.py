"""`bam expert` and `bam blame` on a real run: an expert goes out, one comes in, is trained, and comes back out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bam_core.checkpoint import open_tensors, read_config
from tests.e2e.kit import DOMAINS, Answer, Place

STEP_0 = 1e-6
"""Of the issue: the largest change of a logit by an expert that was added."""


def ok(answer: Answer) -> Answer:
    assert answer.status == 0, answer.err
    return answer


def edit_json(place: Place, stage: str) -> Any:
    return json.loads((place.artifact(stage) / "edit.json").read_text())


def test_removing_reports_every_domain_before_and_after(done: Place) -> None:
    before = set(done.store.rglob("*"))
    answer = ok(done.bam("expert", "remove", "train.bam", "law", "--tokens", "2000", "--json")).json
    assert (answer["stage"], answer["status"]) == ("edit.bam-without-law", "done")
    report = edit_json(done, "edit.bam-without-law")
    assert report["experts"] == {"before": list(DOMAINS), "after": ["general", "code"]}
    evaluated = json.loads(done.perplexity())["models"]["train.bam"]["domains"]
    for domain in DOMAINS:
        was, now = (report["perplexity"][when][domain] for when in ("before", "after"))
        assert abs(was / evaluated[domain]["perplexity"] - 1) < 0.01, "the same text, which `evaluate` reads in bf16"
        assert now != was
    assert report["logit_difference"] > 1e-3
    assert answer["edit"]["perplexity"] == report["perplexity"]
    assert before <= set(done.store.rglob("*")), "all that was there still is"

    words = ok(done.bam("expert", "remove", "train.bam", "law", "--tokens", "2000")).out
    for domain in (*DOMAINS, "average"):
        assert f"\n{domain} " in words
    assert len(done.artifacts("edit.bam-without-law")) == 1
    assert sum(1 for _ in done.artifact("edit.bam-without-law").glob("attempts/*")) == 1, "done once, then reused"


def test_an_expert_is_added_unheard_trained_further_and_found_by_blame(done: Place) -> None:
    ok(done.bam("expert", "remove", "mix.bam", "law", "--as", "small"))
    ok(done.bam("expert", "add", "edit.small", "--from", "expert.law", "--name", "statutes", "--as", "big"))
    report = edit_json(done, "edit.big")
    assert report["logit_difference"] <= STEP_0
    assert report["perplexity"]["before"].keys() == set(DOMAINS)
    for domain, was in report["perplexity"]["before"].items():
        assert abs(report["perplexity"]["after"][domain] / was - 1) < STEP_0
    record = done.record("edit.big")
    assert {role: ref["stage"] for role, ref in record["inputs"].items()} == {
        "base": "edit.small",
        "expert": "expert.law",
        **{f"data.{domain}": f"data.{domain}" for domain in DOMAINS},
    }
    small, law = done.record("edit.small")["metrics"], done.record("expert.law")["metrics"]
    assert record["metrics"]["lineage_tokens"] == small["lineage_tokens"] + law["train_tokens"]

    usual = done.artifact("train.bam")
    answer = ok(done.bam("stage", "train.bam", str(done.recipe), "--input", "mix=edit.big", "--json"))
    key = answer.stages()["train.bam"]["key"]
    assert key[:12] != usual.name
    trained = done.store / "artifacts" / "train.bam" / key[:12]
    assert read_config(trained).experts == ("general", "code", "statutes")
    bias = open_tensors(trained).get("blocks.0.attn.router_bias")
    assert torch.equal(bias, torch.zeros(3)), "training has taken the bias to 0"

    chain, node = [], ok(done.bam("blame", f"train.bam@{key}", "blocks.0.ffn.w_up[statutes]", "--json")).json
    while node is not None:
        chain.append((node["stage"], node["op"]))
        node = node["parents"][0] if node["parents"] else None
    assert chain == [
        ("train.bam", "trained"),
        ("edit.big", "append"),
        ("expert.law", "trained"),
        ("seed", "trained"),
        ("seed", "random"),
    ]
    lineage = ok(done.bam("lineage", f"train.bam@{key}")).out
    assert "edit.big" in lineage


def test_extracting_gives_the_dense_models_back_byte_by_byte(finished: Place, tmp_path: Path) -> None:
    stages = {"general": "seed", "code": "expert.code", "law": "expert.law"}
    for mixture in ("mix.bam", "mix.btx"):
        for name, stage in stages.items():
            folder = tmp_path / mixture / name
            ok(finished.bam("expert", "extract", mixture, name, str(folder)))
            for file in ("model.safetensors", "tokenizer.json"):
                assert (folder / file).read_bytes() == (finished.artifact(stage) / file).read_bytes()
            assert read_config(folder) == read_config(finished.artifact(stage))
            assert {path.name for path in folder.parent.iterdir()} <= set(stages), "nothing half-written is left"


def test_of_a_trained_mixture_the_shared_tensors_are_whose_was_asked(finished: Place, tmp_path: Path) -> None:
    mixture, parent = (open_tensors(finished.artifact(stage)) for stage in ("train.bam", "expert.law"))
    for shared, words in ((None, "train.bam@"), ("mixture", "train.bam@"), ("parent", "expert.law@")):
        folder = tmp_path / str(shared)
        options = [] if shared is None else ["--shared", shared]
        answer = ok(finished.bam("expert", "extract", "train.bam", "law", str(folder), *options))
        assert f"all else that is shared: {words}" in answer.out
        found = open_tensors(folder)
        whose = parent if shared == "parent" else mixture
        assert torch.equal(found.get("norm.weight"), whose.get("norm.weight"))
        assert torch.equal(found.get("blocks.1.attn.w_o"), mixture.get("blocks.1.attn.w_o")[2])
        card = (folder / "MODEL_CARD.md").read_text()
        assert f"| shared tensors | the {'dense parent' if shared == 'parent' else 'mixture'}'s |" in card
        answer = finished.bam("expert", "extract", "train.bam", "law", str(folder))
        assert (answer.status, answer.out) == (2, "")
        assert "exists already" in answer.err


def test_a_parent_that_is_gone_is_missed_only_where_it_is_needed(up_to: Callable[..., Place], tmp_path: Path) -> None:
    place = up_to("mix.bam", "seed")
    answer = place.bam("expert", "extract", "mix.bam", "law", str(tmp_path / "law"))
    assert answer.status == 2
    assert "expert.law@" in answer.err
    assert "gone from the store" in answer.err
    assert "--shared mixture" in answer.err
    assert not list(tmp_path.glob("*law*"))
    ok(place.bam("expert", "extract", "mix.bam", "law", str(tmp_path / "law"), "--shared", "mixture"))
    assert (tmp_path / "law" / "config.json").is_file()
    assert "expert.law@" in ok(place.bam("blame", "mix.bam", "blocks.0.attn.w_q[law]")).out
    assert "missing: gone from the store" in ok(place.bam("blame", "mix.bam", "blocks.0.attn.w_q[law]")).out


def test_without_held_out_text_an_edit_is_made_and_says_so(up_to: Callable[..., Place]) -> None:
    place = up_to("mix.bam")
    answer = ok(place.bam("expert", "remove", "mix.bam", "code"))
    assert "no held-out text of its lineage is in the store" in answer.out
    assert edit_json(place, "edit.bam-without-code")["perplexity"] == {"before": {}, "after": {}}


def test_an_expert_of_another_tokenizer_or_seed_is_refused(done: Place) -> None:
    ok(done.run("--until", "expert.code", "--set", "tokenizer.domains=[general,law]"))
    other = ("expert", "add", "train.bam", "--from", "expert.code@latest", "--name", "more")
    tokenizer = done.bam(*other)
    ok(done.run("--until", "expert.code", "--set", "seed=1", "--set", "tokenizer.vocab_size=300"))
    seed = done.bam(*other)
    for answer, words in ((tokenizer, "was made with another tokenizer than train.bam@"), (seed, "the expert.seed")):
        assert (answer.status, answer.out) == (2, "")
        assert words in answer.err
    assert not list(done.store.glob("artifacts/edit.*"))
