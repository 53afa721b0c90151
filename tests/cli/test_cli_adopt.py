"""`bam adopt` and a recipe that names what was adopted, up to the plan: nothing is trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import InvalidInput
from bam_core.graph.adopted import adopted_config
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Stage
from pipelines import bam as method
from pipelines.recipe import load_recipe
from pipelines.stages.inputs import require_fitting
from pipelines.wiring.planning import text_digests
from tests.infra.exchange_kit import DENSE, Team, reseal, snapshot

NAME = "law-by-other-team"
RECIPE = """
name: small
domains:
  general: {source: {kind: text, path: general.txt}}
  law: {source: {kind: text, path: law.txt}, expert: law-by-other-team}
tokenizer: {kind: bpe, vocab_size: 300}
model: {d_model: 8, n_layers: 1, n_heads: 2, d_ff: 12, max_seq_len: 16}
phases:
  seed: {tokens: 640, batch_tokens: 64, lr: 1e-3}
  expert: {tokens: 640, batch_tokens: 64, lr: 1e-3}
  mixture: {tokens: 640, batch_tokens: 64, lr: 1e-3}
variants:
  bam: {attention: {kv: expert}, ffn: {top_k: 1}}
evaluate: {tokens: 320}
"""


@pytest.fixture
def ours(here: Path) -> Team:
    team = Team(here / "bam_store")
    team.seed()
    return team


@pytest.fixture
def theirs(tmp_path: Path) -> Team:
    team = Team(tmp_path / "theirs")
    team.seed()
    team.model("expert.law")
    return team


@pytest.fixture
def recipe(here: Path) -> Path:
    for domain in ("general", "law"):
        (here / f"{domain}.txt").write_text(f"all about {domain} " * 50)
    (here / "small.yaml").write_text(RECIPE)
    return here / "small.yaml"


def test_adopting_says_what_was_taken_and_takes_it_once(bam: Any, ours: Team, theirs: Team) -> None:
    ended = bam("adopt", NAME, f"{theirs.store.uri}#expert.law")
    assert (ended.status, ended.err) == (0, "")
    foreign = theirs.made["expert.law"]
    assert f"adopted.{NAME}@" in ended.out
    assert f"expert.law@{foreign.key[:12]} of {theirs.store.uri}" in ended.out
    assert f"domains.DOMAIN.expert: {NAME}" in ended.out
    again = bam("adopt", NAME, str(theirs.folder("expert.law")), "--json")
    value = json.loads(again.out)
    assert (again.status, value["status"]) == (0, "already adopted")
    assert value["origin"] == {
        **{"stage": "expert.law", "key": foreign.key, "digest": foreign.digest},
        "store": theirs.store.uri,
    }
    [record] = ours.store.records(f"adopted.{NAME}")
    assert record.provenance["pipeline"] == "adopted"
    [run] = ours.store.runs.all()
    assert (run.pipeline, run.artifacts()) == ("adopted", [(record.stage, record.key)])
    assert "nothing would go" in bam("gc").out
    assert "adopted." in bam("ls").out
    assert bam("verify", f"adopted.{NAME}").status == 0


def test_a_refusal_is_words_and_nothing_else(bam: Any, ours: Team, theirs: Team, here: Path) -> None:
    lone = shutil.copytree(theirs.folder("expert.law"), here / "post")
    (lone / "model.safetensors").write_bytes(b"short")
    before = snapshot(here)
    for line, words in {
        ("adopt",): "Missing argument 'NAME'",
        ("adopt", NAME): "Missing argument 'URI'",
        ("adopt", "../x", "post"): "1 to 64 letters",
        ("adopt", NAME, "nowhere"): "record.json: ",
        ("adopt", NAME, "bam_store#expert.law"): "names no artifact",
        ("adopt", NAME, f"{theirs.store.uri}#expert.lwa"): "did you mean 'expert.law'?",
        ("adopt", NAME, "nosuch://bucket/x"): "cannot be opened",
        ("adopt", NAME, "post"): "has 5 bytes, not",
    }.items():
        ended = bam(*line)
        assert (ended.status, ended.out) == (2, ""), (line, ended)
        assert words in ended.err, (line, ended.err)
        assert "Traceback" not in ended.err
        assert snapshot(here) == before, line


def planned_seed(ours: Team, recipe: Path) -> str:
    """A seed under the key that the recipe's seed has, so that what was adopted for it is found by the plan."""
    loaded = load_recipe(str(recipe))
    there = {NAME: {"name": NAME, "digest": "", "origin": {}}}
    pipeline = method.build(loaded, text_digests(loaded), there)
    key = pipeline_keys(pipeline)["seed"]
    folder = ours.folder("seed")
    moved = folder.with_name(key[:12])
    folder.rename(moved)
    reseal(moved, key=key)
    return key


def test_a_plan_reuses_it_and_trains_no_expert_for_its_domain(bam: Any, ours: Team, theirs: Team, recipe: Path) -> None:
    seed = planned_seed(ours, recipe)
    assert bam("adopt", NAME, str(theirs.folder("expert.law"))).status == 0
    ended = bam("plan", str(recipe), "--json")
    assert ended.status == 0, ended.err
    plan = json.loads(ended.out)
    actions = {stage["stage"]: stage["action"] for stage in plan["stages"]}
    [record] = ours.store.records(f"adopted.{NAME}")
    assert record.inputs["seed"].key == seed
    assert record.payload["config"] == adopted_config(NAME, theirs.made["expert.law"])
    assert "expert.law" not in actions
    assert actions[f"adopted.{NAME}"] == "run", (
        "its seed is to be made again, and it is taken if that comes out the same"
    )
    model = plan["models"][f"adopted.{NAME}"]
    assert (model["train_tokens"], model["training_bytes"], model["mixing_bytes"]) == (0, None, None)
    assert model["params_total"] > 0
    assert f"adopted.{NAME}" in bam("plan", str(recipe)).out


def test_a_plan_refuses_what_is_not_adopted(bam: Any, ours: Team, theirs: Team, recipe: Path, here: Path) -> None:
    for command in (["plan", str(recipe)], ["run", str(recipe)], ["stage", "mix.bam", str(recipe)]):
        ended = bam(*command, "--executor", "local")
        assert (ended.status, ended.out) == (2, ""), command
        assert f"domains.law.expert: '{NAME}': is no adopted expert" in ended.err
        assert f"`bam adopt {NAME} URI`" in ended.err
    assert bam("adopt", "law-by-other-taem", str(theirs.folder("expert.law"))).status == 0
    before = snapshot(here)
    ended = bam("plan", str(recipe))
    assert ended.status == 2
    assert "did you mean 'law-by-other-taem'?" in ended.err
    assert snapshot(here) == before


def test_a_plan_refuses_what_was_adopted_for_another_seed(
    bam: Any, ours: Team, theirs: Team, recipe: Path, here: Path
) -> None:
    assert bam("adopt", NAME, str(theirs.folder("expert.law"))).status == 0
    before = snapshot(here)
    for command in (["plan", str(recipe)], ["run", str(recipe), "--executor", "local"]):
        ended = bam(*command)
        assert (ended.status, ended.out) == (2, "")
        assert f"domains.law.expert: '{NAME}': was adopted for seed@{ours.made['seed'].key[:12]}" in ended.err
        assert "this recipe's seed is seed@" in ended.err
    assert snapshot(here) == before, "nothing was trained for it"


def test_a_plan_refuses_to_make_it_again(bam: Any, ours: Team, theirs: Team, recipe: Path) -> None:
    planned_seed(ours, recipe)
    assert bam("adopt", NAME, str(theirs.folder("expert.law"))).status == 0
    ended = bam("plan", str(recipe), "--force", "adopted.*")
    assert ended.status == 2
    assert "cannot be made again: --force names it" in ended.err
    [record] = ours.store.records(f"adopted.{NAME}")
    (ours.store.localize(record) / "model.safetensors").write_bytes(b"short")
    ended = bam("plan", str(recipe))
    assert ended.status == 2
    assert "is damaged: output model.safetensors has 5 bytes, not" in ended.err
    assert f"`bam adopt {NAME} URI` fetches it again" in ended.err


def test_it_may_fill_the_place_of_any_expert_of_its_seed(bam: Any, ours: Team, theirs: Team) -> None:
    """As `--input expert.law=adopted.NAME` asks for."""
    assert bam("adopt", NAME, str(theirs.folder("expert.law"))).status == 0
    [adopted] = ours.store.records(f"adopted.{NAME}")
    mix = Stage("mix.bam", "mix", 1, {}, {"seed": "seed", "expert.law": "expert.law"})
    require_fitting(mix, {"seed": ours.made["seed"], "expert.law": adopted})
    other = ours.seed(number=1)
    with pytest.raises(InvalidInput, match="was branched from another seed"):
        require_fitting(mix, {"seed": other, "expert.law": adopted})


def test_a_mixture_of_it_says_where_it_was_trained(bam: Any, ours: Team, theirs: Team, here: Path) -> None:
    from bam_core.checkpoint import open_tensors, write_model
    from bam_core.upcycle.apply import upcycle
    from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for

    assert bam("adopt", NAME, str(theirs.folder("expert.law"))).status == 0
    stage = f"adopted.{NAME}"
    [ours.made[stage]] = ours.store.records(stage)
    experts = {"general": "seed", "law": stage}

    def write(out: Path) -> None:
        target, tensors = mixture_config(DENSE, list(experts), VARIANTS["bam"]), dict[str, Any]()
        folders = {name: ours.store.localize(ours.made[parent]) for name, parent in experts.items()}
        sources = {name: open_tensors(folder) for name, folder in folders.items()}
        made = upcycle(target, rules_for(VARIANTS["bam"], target), sources, 4, tensors)
        write_model(out, target, made, tokenizer=folders["general"] / "tokenizer.json", card="# a mixture\n")
        (out / "mix.json").write_text(json.dumps({"experts": experts, "tensors": tensors}))

    ours.commit("mix.bam", write, {}, {parent: parent for parent in experts.values()}, {})
    where = f"expert.law@{theirs.made['expert.law'].key[:12]} of {theirs.store.uri}"

    lines = bam("blame", "mix.bam", "blocks.0.attn.w_q[law]").out.splitlines()
    assert [line.split("@")[0].strip("└─ ") for line in lines[:3]] == ["mix.bam", stage, "seed"]
    assert f"adopted (trained as {where})" in lines[1]
    assert "replaced" not in lines[1]

    ended = bam("expert", "extract", "mix.bam", "law", "law")
    assert ended.status == 0, ended.err
    assert f"trained elsewhere, as {where}" in ended.out
    assert (here / "law/model.safetensors").read_bytes() == (
        theirs.folder("expert.law") / "model.safetensors"
    ).read_bytes()
    assert f"| trained elsewhere as | {where} |" in (here / "law/MODEL_CARD.md").read_text()

    graph = json.loads(bam("lineage", "mix.bam", "--format", "json").out)
    stores = {node["stage"]: node["store"] for node in graph["nodes"]}
    assert stores["expert.law"] == theirs.store.uri
    assert stores["seed"] is None
    added = bam("expert", "add", "mix.bam", "--from", stage, "--name", "more", "--tracking-uri", "http://127.0.0.1:9")
    assert added.status == 0, added.err
