"""`bam promote`: what it registers, what it refuses and why; and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.mlflow_connect import connect
from infra.mlflow_registry import VERSIONS_TAG
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS
from tests.infra.registry_kit import SCORES, Lab, figures, lab

pytestmark = MLFLOW_WARNINGS
BELOW_BTX = {"require": {"average_perplexity": {"below": "btx"}}}
BELOW_SEVEN = {"require": {"average_perplexity": {"below": 7}, "params_total": {"at_most": 1000}}}


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = lab(tmp_path_factory.mktemp("tracked") / "bam_store")
    made.track()
    return made


@pytest.fixture
def store(tracked: Lab, here: Path) -> Lab:
    """The default store of the current folder: all is made and in MLflow, no run is on record."""
    shutil.copytree(tracked.folder, here / "bam_store")
    return Lab(here / "bam_store", dict(tracked.records))


def registry(store: Lab) -> dict[str, Any]:
    """What is in MLflow's registry, and the pins."""
    client = connect(f"sqlite:///{store.folder / 'mlflow.db'}")
    return {
        "models": {m.name: {a: str(v) for a, v in m.aliases.items()} for m in client.search_registered_models()},
        "versions": {f"{v.name} {v.version}": v.tags["bam.stage"] for v in client.search_model_versions()},
        "pins": {pin.name: pin.stage for pin in store.store.pins.all()},
    }


NOTHING: dict[str, Any] = {"models": {}, "versions": {}, "pins": {}}


def refused(ended: Any, store: Lab, status: int = 1) -> str:
    """What was said. Nothing is registered, and no traceback is shown."""
    assert ended.status == status, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert registry(store) == NOTHING
    return " ".join((ended.out + ended.err).split())


def artifact(store: Lab, stage: str) -> str:
    return f"{stage}@{store.records[stage].key[:12]}"


def test_a_model_that_passes_its_rule_is_registered(bam, store):
    store.run(BELOW_BTX)
    done = bam("promote", "train.bam", "--alias", "champion")
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        f"promoted: tiny-bam version 1 is {artifact(store, 'train.bam')}",
        "  alias champion",
        "  average_perplexity 8 is below train.btx's 9",
        f"  the rule of run tiny-1, judged by {artifact(store, 'evaluate')}",
        "  #/models/tiny-bam/versions/1 (`bam ui`)",
    ]
    assert registry(store) == {
        "models": {"tiny-bam": {"champion": "1"}},
        "versions": {"tiny-bam 1": "train.bam"},
        "pins": {"registry-tiny-bam-1": "train.bam"},
    }


def test_again_it_only_moves_the_alias(bam, store):
    store.run()
    bam("promote", "train.btx", "--name", "best", "--alias", "champion")
    bam("promote", "train.bam", "--name", "best")
    again = bam("promote", "train.bam", "--name", "best", "--alias", "champion", "--json")
    said = json.loads(again.out)
    assert (again.status, said["promoted"], said["version"], said["is_new"]) == (0, True, "2", False)
    assert (said["alias"], said["alias_before"]) == ("champion", "1")
    before, pins = registry(store), store.store.pins.all()
    assert before["versions"] == {"best 1": "train.btx", "best 2": "train.bam"}
    assert before["models"] == {"best": {"champion": "2"}}
    words = bam("promote", "train.bam", "--name", "best", "--alias", "champion").out
    assert "registered before" in words
    assert "until now" not in words
    assert "no rule was asked" in words
    assert registry(store) == before
    assert store.store.pins.all() == pins


def test_a_lost_pin_comes_back(bam, store):
    store.run()
    bam("promote", "train.bam", "--alias", "champion")
    pins = store.store.pins
    kept = pins.get("registry-tiny-bam-1")
    pins.remove("registry-tiny-bam-1")
    bam("promote", "train.bam")
    assert json.loads(pins.get("registry-tiny-bam-1").why) == json.loads(kept.why)
    assert json.loads(kept.why)["aliases"] == ["champion"]


def test_a_rule_that_does_not_hold(bam, store):
    store.run(BELOW_SEVEN)
    said = refused(bam("promote", "train.bam", "--alias", "champion"), store)
    assert "average_perplexity 8 is not below 7" in said
    assert "params_total" not in said
    answer = json.loads(bam("promote", "train.bam", "--json").out)
    assert answer["promoted"] is False
    assert answer["refused"] == ["average_perplexity 8 is not below 7"]
    assert answer["rule"] == ["average_perplexity 8 is not below 7", "params_total 1,000 is at most 1,000"]
    assert (answer["rule_of"], answer["version"]) == ("run tiny-1", None)


def test_the_newest_run_that_has_it_says_what_is_asked(bam, store):
    store.run(BELOW_SEVEN, "first", started=1.0)
    store.run(BELOW_BTX, "second", started=2.0)
    store.run(BELOW_SEVEN, "third", started=3.0, but=["train.bam"])
    assert "the rule of run second" in bam("promote", "train.bam").out
    store.run(None, "fourth", started=4.0)
    assert "no rule was asked" in bam("promote", "train.btx").out


def test_a_recipe_says_what_is_asked(bam, store, here):
    from pipelines.recipe import shipped_recipes

    store.run(BELOW_BTX)
    strict = yaml.safe_load(shipped_recipes()["quickstart"].read_text()) | {"promote": BELOW_SEVEN}
    (here / "strict.yaml").write_text(yaml.safe_dump(strict, sort_keys=False))
    said = refused(bam("promote", "train.bam", "--recipe", "strict.yaml"), store)
    assert "average_perplexity 8 is not below 7 the rule of recipe strict.yaml" in said
    done = bam("promote", "train.btx", "--recipe", "quickstart")  # which has none
    assert (done.status, registry(store)["versions"]) == (0, {"quickstart-btx 1": "train.btx"})
    strict["promote"] = {"model": "our best"}
    (here / "named.yaml").write_text(yaml.safe_dump(strict, sort_keys=False))
    assert "our best version 1" in bam("promote", "train.bam", "--recipe", "named.yaml").out


def test_no_evaluation_and_how_to_get_one(bam, store):
    store.run(BELOW_BTX)
    shutil.rmtree(store.store.localize(store.records["evaluate"]))
    said = refused(bam("promote", "train.bam"), store)
    assert "no evaluation has scored these bytes" in said
    assert f"`bam stage evaluate tiny.yaml --with-deps --input train.bam={artifact(store, 'train.bam')}`" in said


def test_how_to_score_what_no_recipe_names(bam, store):
    store.like("edit.new", "mix.bam", ["mix.bam"])
    store.run(BELOW_BTX)
    said = refused(bam("promote", "edit.new"), store)
    assert f"--input MODEL={artifact(store, 'edit.new')}` (MODEL: in whose place it is scored, such as seed)" in said


def test_an_evaluation_of_other_bytes_does_not_count(bam, store):
    """The mixture was made again and came out with other bytes: under its key, and not what was scored."""
    old = store.records["train.bam"]
    store.make("train.bam", {"config.json": "{}", "model.safetensors": "other"}, {"mix": "mix.bam"})
    assert store.records["train.bam"].key == old.key
    assert store.records["train.bam"].digest != old.digest
    store.run(BELOW_BTX)
    assert "no evaluation has scored these bytes" in refused(bam("promote", "train.bam"), store)


def test_the_newest_evaluation_judges_under_the_name_that_it_gave(bam, store):
    """Another artifact was scored in the place of `train.btx`: by `bam stage evaluate --input`."""
    roles = {name: name for name in SCORES} | {"train.btx": "train.bam"}
    del roles["train.bam"]
    store.evaluate({**SCORES, "train.btx": figures(6.0)}, roles, tokens=2)
    store.run(BELOW_SEVEN)
    assert "average_perplexity 6 is below 7" in bam("promote", "train.bam").out


def flip(path: Path) -> None:
    """One byte, and no size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("stage", ["train.bam", "mix.bam", "expert.law", "seed"])
def test_a_flipped_byte_in_the_model_or_behind_it(bam, store, stage):
    store.run(BELOW_BTX)
    flip(store.file(stage, "model.safetensors"))
    said = refused(bam("promote", "train.bam"), store)
    assert artifact(store, stage) in said
    assert "model.safetensors" in said


def test_damage_elsewhere_is_no_reason(bam, store):
    store.run(BELOW_BTX)
    flip(store.file("train.btx", "model.safetensors"))
    assert bam("promote", "train.bam").status == 0


def test_a_changed_record_behind_it(bam, store):
    store.run(BELOW_BTX)
    path = store.file("expert.law", "record.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 5.0}))
    said = refused(bam("promote", "train.bam"), store)
    assert artifact(store, "expert.law") in said
    assert "checksum" in said


def test_its_own_record_cannot_be_read(bam, store):
    """An older artifact of the stage is not promoted in its place."""
    store.run()
    old = store.records["train.bam"]
    store.make("train.bam", {"config.json": "{}", "model.safetensors": "x"}, {"mix": "mix.bam"}, {"newer": True})
    store.file("train.bam", "record.json").write_text("{}")
    assert f"{artifact(store, 'train.bam')}: its record cannot be read" in refused(bam("promote", "train.bam"), store)
    assert bam("promote", f"train.bam@{old.key[:12]}").status == 0


def test_what_was_collected_is_no_reason(bam, store):
    store.run()
    shutil.rmtree(store.store.localize(store.records["expert.law"]))
    done = bam("promote", "train.bam")
    assert done.status == 0, done.out
    assert f"not checked: {artifact(store, 'expert.law')}: gone from the store" in done.out


def test_a_changed_evaluation_judges_nothing(bam, store):
    store.run(BELOW_SEVEN)
    path = store.file("evaluate", "perplexity.json")
    path.write_text(path.read_text().replace("8.0", "6.0"))
    said = refused(bam("promote", "train.bam"), store)
    assert f"{artifact(store, 'evaluate')} cannot be judged by" in said


def test_a_rule_that_this_version_does_not_know(bam, store):
    store.run({"require": {"average_perplexity": {"under": "btx"}}})
    said = refused(bam("promote", "train.bam"), store)
    assert "tiny-1" in said
    assert "--recipe" in said


USAGE: dict[str, tuple[list[str], str]] = {
    "nothing": (["promote"], "Missing argument 'REF'"),
    "what is not there": (["promote", "train.bma"], "did you mean 'train.bam'?"),
    "what is no model": (["promote", "evaluate"], "makes no model"),
    "a slash": (["promote", "seed", "--name", "team/best"], "must have no '/' and no ':'"),
    "a colon": (["promote", "seed", "--name", "a:b"], "must have no '/' and no ':'"),
    "300 characters": (["promote", "seed", "--name", "x" * 300], "must have 1 to 256 characters"),
    "a line break": (["promote", "seed", "--name", "a\nb"], "no line break"),
    "no name": (["promote", "seed", "--name", ""], "must have 1 to 256 characters"),
    "an alias with a space": (["promote", "seed", "--alias", "the champion"], "letters, digits"),
    "an alias with a line break": (["promote", "seed", "--alias", "champion\n"], "letters, digits"),
    "an alias that MLflow keeps": (["promote", "seed", "--alias", "Latest"], "for itself"),
    "an alias that is a version": (["promote", "seed", "--alias", "v12"], "for itself"),
    "no alias": (["promote", "seed", "--alias", ""], "letters, digits"),
    "an unknown recipe": (["promote", "seed", "--recipe", "quickstrat"], "did you mean 'quickstart'?"),
    "a registered model without a version": (["promote", "models:/best"], "models:/NAME@ALIAS"),
    "an unknown registered model": (["promote", "models:/best@champion"], "no such registered model"),
    "an unknown model id": (["promote", "m-123"], "names no artifact"),
}


@pytest.mark.parametrize("mistake", USAGE)
def test_what_cannot_be_meant(bam, store, mistake):
    argv, words = USAGE[mistake]
    assert words in refused(bam(*argv), store, status=2)


def test_what_is_not_done(bam, store):
    store.store.attempt_dir("dense", "e" * 64, 1)
    store.store.close_attempt("dense", "e" * 64, 1, {"message": "no room"})
    assert "dense: is not done; `bam ls dense`" in refused(bam("promote", "dense"), store, status=2)


def test_what_is_being_made_again(bam, store):
    record = store.records["train.bam"]
    lease = store.store.acquire("train.bam", record.key, "somebody")
    try:
        assert "held by somebody" in refused(bam("promote", "train.bam"), store, status=3)
    finally:
        lease.release()


def test_it_holds_the_artifact_while_it_looks_and_lets_go(bam, store, monkeypatch):
    """So that it is not collected before its pin is written."""
    from pipelines.wiring import promoting

    place, seen, verify = ("train.bam", store.records["train.bam"].key), [], promoting.verify
    monkeypatch.setattr(
        promoting, "verify", lambda *a, **b: seen.append(store.store.lease_info(*place)) or verify(*a, **b)
    )
    assert bam("promote", "train.bam").status == 0
    flip(store.file("seed", "model.safetensors"))
    assert bam("promote", "train.bam").status == 1
    assert [lease is not None for lease in seen] == [True, True]
    assert store.store.lease_info(*place) is None


def test_mlflow_is_not_there(bam, store):
    (store.folder / "mlflow.db").unlink()
    ended = bam("promote", "train.bam")
    assert ended.status == 2
    assert "`bam lineage sync`" in ended.err
    assert not (store.folder / "mlflow.db").exists()
    assert list(store.store.pins.all()) == []


def test_mlflow_does_not_answer(bam, store):
    said = refused(bam("promote", "train.bam", "--tracking-uri", "http://me:secret@127.0.0.1:9"), store, status=2)
    assert "MLflow at http://" in said
    assert "secret" not in said


def test_mlflow_has_not_heard_of_it(bam, store):
    store.like("edit.new", "mix.bam", ["mix.bam"])
    said = refused(bam("promote", "edit.new"), store, status=2)
    assert f"{artifact(store, 'edit.new')}: MLflow does not know this model" in said
    assert "`bam lineage sync`" in said


def test_a_registered_model_is_a_reference_too(bam, store):
    store.run()
    bam("promote", "train.bam", "--alias", "challenger")
    done = bam("promote", "models:/tiny-bam@challenger", "--alias", "champion")
    assert done.status == 0, done.err
    assert registry(store)["models"] == {"tiny-bam": {"challenger": "1", "champion": "1"}}
    assert "version 1" in bam("promote", "models:/tiny-bam/1").out


def test_one_that_others_registered_names_no_artifact(bam, store):
    client = connect(f"sqlite:///{store.folder / 'mlflow.db'}")
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://bucket/model")
    ended = bam("promote", "models:/theirs/1")
    assert ended.status == 2
    assert "has not registered it" in ended.err


def test_names_of_any_kind(bam, store):
    name = 'it\'s my "best" <img src=x onerror=alert(1)> & more'
    assert bam("promote", "train.bam", "--name", name, "--alias", "a").status == 0
    assert bam("promote", "train.bam", "--name", name, "--alias", "b").status == 0
    found = registry(store)
    assert found["models"] == {name: {"a": "1", "b": "1"}}
    (pin,) = found["pins"]
    assert pin.startswith("registry-it-s-my--best-")
    assert found["versions"] == {f"{name} 1": "train.bam"}


def test_the_models_own_page_shows_its_version(bam, store):
    store.run()
    bam("promote", "train.bam")
    client = connect(f"sqlite:///{store.folder / 'mlflow.db'}")
    tags: Mapping[str, str] = client.get_logged_model(store.records["train.bam"].mlflow["model_id"]).tags
    assert json.loads(tags[VERSIONS_TAG]) == [{"name": "tiny-bam", "version": 1}]
