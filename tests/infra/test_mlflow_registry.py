"""Versions in a real registry: their pages lead back, nothing stays half-made, and pins bring back what MLflow lost."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from bam_core.errors import StoreError
from bam_core.graph.pins import Pin
from infra import mlflow_registry as registry
from infra.mlflow_pages import RUNS_AND_MODELS
from infra.mlflow_runs import PARENT_RUN
from infra.mlflow_tracker import MlflowTracker
from infra.mlflow_ui import serve
from infra.registry_entry import DESCRIPTION_CHARS, Entry, entry, logged_model
from infra.registry_pins import Promoted, note_aliases, promoted
from pipelines.recipe.promotion import model_name_fault
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, fresh_tracker
from tests.infra.registry_kit import BEHIND, Lab, lab

pytestmark = MLFLOW_WARNINGS
NAMES = ["tiny-bam", 'it\'s my "best" <img src=x onerror=alert(1)> & more', "x" * 256, "a%2Fb#?", "naïve 模型"]


class Registry:
    """A tracked lab and short ways to its registry."""

    def __init__(self, made: Lab, tracker: MlflowTracker) -> None:
        self.lab, self.tracker, self.client = made, tracker, tracker.client
        self.pins = made.store.pins

    def entry(self, stage: str = "train.bam") -> Entry:
        record = self.lab.records[stage]
        model = logged_model(self.client, record)
        assert model is not None
        behind = [self.lab.records[name] for name in BEHIND.get(stage, ())]
        return entry(self.client, record, model, behind, f"/store/{stage}")

    def register(self, name: str = "tiny-bam", stage: str = "train.bam", alias: str | None = None) -> str:
        record = self.lab.records[stage]

        def keep(version: str) -> None:
            Promoted(name, int(version), stage, record.key, record.digest, 1.0).write(self.pins)

        version = registry.register(self.client, name, self.entry(stage), keep, alias=alias)
        note_aliases(self.pins, name, registry.aliases(self.client, name))
        return version

    def state(self) -> dict[str, Any]:
        """Everything in the registry, and the tags of LoggedModels that name it."""
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        return {
            "models": {
                model.name: {str(alias): str(version) for alias, version in model.aliases.items()}
                for model in self.client.search_registered_models()
            },
            "versions": {
                (version.name, int(version.version)): version.tags["bam.key"]
                for version in self.client.search_model_versions()
            },
            "tags": {
                model.tags["bam.stage"]: json.loads(model.tags[registry.VERSIONS_TAG])
                for model in self.client.search_logged_models(experiments)
                if registry.VERSIONS_TAG in model.tags
            },
            "pins": {pin.name: (pin.stage, pin.why) for pin in self.pins.all()},
        }

    def with_empty_mlflow(self) -> Registry:
        """The same store, and an MLflow that has never heard of it."""
        return Registry(self.lab, fresh_tracker(self.lab.folder.parent / "empty"))

    def after_sync(self) -> Registry:
        """The same store, and an MLflow that has lost all and been told the records again."""
        return Registry(self.lab, self.lab.track(fresh_tracker(self.lab.folder.parent / "synced")))

    def restore(self) -> list[Promoted]:
        """What sync does once the records are in MLflow."""
        records = self.lab.records
        return registry.restore_registry(
            self.client,
            records.values(),
            self.pins,
            lambda stage, key: f"/store/{stage}",
            lambda record: [records[name] for name in BEHIND.get(record.stage, ())],
        )


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = lab(tmp_path_factory.mktemp("tracked") / "store")
    made.track()
    return made


@pytest.fixture
def here(tracked: Lab, tmp_path: Path) -> Registry:
    """A copy of the tracked lab: MLflow's database is a file."""
    shutil.copytree(tracked.folder, tmp_path / "store")
    copy = Lab(tmp_path / "store", dict(tracked.records))
    return Registry(copy, MlflowTracker(f"sqlite:///{copy.folder / 'mlflow.db'}", str(copy.folder)))


def test_the_page_of_a_version_leads_back(here: Registry) -> None:
    record = here.lab.records["train.bam"]
    model_id, run_id = record.mlflow["model_id"], record.mlflow["run_id"]
    version = here.client.get_model_version("tiny-bam", here.register())
    run = here.client.get_run(run_id)
    place = f"#/experiments/{run.info.experiment_id}"
    assert (version.source, version.run_id) == (f"models:/{model_id}", run_id)
    assert version.tags["bam.digest"] == record.digest
    assert version.tags["bam.parent.mix"] == here.lab.records["mix.bam"].key
    assert (version.tags["bam.run"], version.tags["bam.pipeline"]) == ("tiny-1", "tiny")
    assert (version.tags["bam.stage"], version.tags["bam.artifact"]) == ("train.bam", "/store/train.bam")
    assert version.description.splitlines()[0] == f"train.bam@{record.key[:12]}"  # what lists show of it
    for page in (f"models/{model_id}", f"runs/{run_id}", f"runs/{run.data.tags[PARENT_RUN]}"):
        assert f"({place}/{page}?{RUNS_AND_MODELS})" in version.description
    for stage in BEHIND["train.bam"]:
        behind = here.lab.records[stage]
        assert (
            f"[`{stage}@{behind.key[:12]}`]({place}/models/{behind.mlflow['model_id']}?{RUNS_AND_MODELS})"
            in version.description
        )
    assert f"`bam lineage train.bam@{record.key[:12]}`" in version.description
    assert here.state()["tags"] == {"train.bam": [{"name": "tiny-bam", "version": 1}]}


def test_a_page_of_many_experts_fits_and_says_what_it_left_out(here: Registry) -> None:
    behind = [here.lab.records["expert.law"]] * 200
    record = here.lab.records["train.bam"]
    model = logged_model(here.client, record)
    assert model is not None
    words = entry(here.client, record, model, behind, "/store").description
    shown = words.count("`expert.law@")
    assert len(words) <= DESCRIPTION_CHARS
    assert shown > 20
    assert words.endswith(f"| and {200 - shown} more |")


def test_words_of_others_are_not_markup(here: Registry) -> None:
    hostile = "`](javascript:alert(1)) <img src=x onerror=alert(1)> | `"
    record = here.lab.records["train.bam"]
    model = logged_model(here.client, record)
    assert model is not None
    words = entry(here.client, record, model, (), hostile).description
    (line,) = [line for line in words.splitlines() if line.startswith("- artifact")]
    assert line.count("`") == 2
    assert line.endswith("`")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_it_can_hold(here: Registry, name: str) -> None:
    assert model_name_fault(name) is None
    record = here.lab.records["train.bam"]
    assert registry.find_version(here.client, name, record) is None
    version = here.register(name, alias="champion")
    assert registry.find_version(here.client, name, record) == version
    assert registry.aliases(here.client, name) == {"champion": version}
    (pin,) = promoted(here.pins)
    assert (pin.model, pin.version, pin.aliases, pin.key) == (name, 1, ("champion",), record.key)
    assert len(list((here.lab.folder / "pins").iterdir())) == 1


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " ", ".", "..", "..a", "../a", "models:/x"])
def test_what_we_refuse_mlflow_refuses(here: Registry, name: str) -> None:
    assert model_name_fault(name) is not None
    with pytest.raises(MlflowException):
        here.register(name)
    assert here.state() == {"models": {}, "versions": {}, "tags": {}, "pins": {}}


def test_other_bytes_under_the_same_key_are_another_version(here: Registry) -> None:
    here.register()
    record = here.lab.records["train.bam"]
    assert registry.find_version(here.client, "tiny-bam", record) == "1"
    assert registry.find_version(here.client, "tiny-bam", replace(record, digest="0" * 64)) is None
    assert registry.find_version(here.client, "other", record) is None


def test_an_alias_moves_and_pins_know_where_it_is(here: Registry) -> None:
    here.register("best", "train.btx", alias="champion")
    here.register("best", "train.bam", alias="champion")
    assert registry.aliases(here.client, "best") == {"champion": "2"}
    assert [(pin.stage, pin.aliases) for pin in promoted(here.pins)] == [
        ("train.btx", ()),
        ("train.bam", ("champion",)),
    ]


@pytest.mark.parametrize("failing", ["create_model_version", "set_logged_model_tags", "set_registered_model_alias", ""])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_fails_half_way_leaves_nothing(
    here: Registry, monkeypatch: pytest.MonkeyPatch, failing: str, is_there: bool
) -> None:
    """failing: a method of MLflow's client, once; or none: the writing of the pin."""
    if is_there:
        here.register("best", "train.btx", alias="champion")
    before = here.state()
    real = getattr(here.client, failing, None)

    def fail_once(*arguments: Any, **named: Any) -> Any:
        setattr(here.client, failing, real)
        raise MlflowException("the server is gone")

    def keep(version: str) -> None:
        raise StoreError("the disk is full")

    if failing:
        monkeypatch.setattr(here.client, failing, fail_once)
    with pytest.raises((MlflowException, StoreError), match=r"is gone|is full"):
        registry.register(here.client, "best", here.entry(), keep, alias="champion")
    assert here.state() == before


def test_an_interrupt_leaves_nothing(here: Registry) -> None:
    def keep(version: str) -> None:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        registry.register(here.client, "best", here.entry(), keep)
    assert here.state() == {"models": {}, "versions": {}, "tags": {}, "pins": {}}


def test_the_process_keeps_its_own_default_mlflow(
    here: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    here.register()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere"
    assert mlflow.get_tracking_uri() == "http://elsewhere"
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_what_mlflow_lost_comes_back_from_pins(here: Registry) -> None:
    here.register("best", "train.btx", alias="champion")
    here.register("best", "mix.bam")
    here.register("best", "train.bam", alias="champion")
    here.register("seed <1>", "seed", alias="base")
    here.client.delete_model_version("best", "2")
    here.pins.remove("registry-best-2")
    before = here.state()
    del before["tags"]["mix.bam"]  # MLflow leaves it on the model whose version was deleted
    lost = here.after_sync()
    assert lost.state()["models"] == {}
    assert [(made.model, made.version) for made in lost.restore()] == [("best", 1), ("best", 3), ("seed <1>", 1)]
    assert lost.state() == before
    assert lost.restore() == []
    assert lost.state() == before


def test_what_cannot_be_brought_back_is_passed_over(here: Registry) -> None:
    here.register("best", "train.bam")
    here.register("best", "train.btx")
    here.pins.write(Pin("registry-mine", "seed", here.lab.records["seed"].key, "because", 1.0))
    here.pins.write(Pin("registry-best-9", "seed", here.lab.records["seed"].key, '{"model": "best"}', 1.0))
    here.pins.write(replace(here.pins.all()[0], name="registry-copied-1"))
    assert [made.pin_name for made in promoted(here.pins)] == ["registry-best-1", "registry-best-2"]
    untracked = here.with_empty_mlflow()
    assert untracked.restore() == []
    assert untracked.state()["models"] == {}
    promoted_key = here.lab.records["train.bam"].key
    here.lab.make("train.bam", {"config.json": "{}", "model.safetensors": "other"}, {"mix": "mix.bam"})
    assert here.lab.records["train.bam"].key == promoted_key
    lost = here.after_sync()
    assert [(made.stage, made.version) for made in lost.restore()] == [("train.btx", 2)]


def test_a_number_that_is_taken_is_not_fought_for(here: Registry) -> None:
    here.register("best", "train.bam", alias="champion")
    lost = here.after_sync()
    registry.register(lost.client, "best", lost.entry("seed"), lambda version: None, alias="champion")
    assert [made.version for made in lost.restore()] == [2]
    assert [(pin.stage, pin.version, pin.aliases) for pin in promoted(lost.pins)] == [("train.bam", 2, ())]
    assert registry.aliases(lost.client, "best") == {"champion": "1"}


def test_a_pin_does_not_make_mlflow_count_to_a_billion(here: Registry) -> None:
    record = here.lab.records["train.bam"]
    Promoted("best", 10**9, "train.bam", record.key, record.digest, 1.0).write(here.pins)
    assert [made.version for made in here.restore()] == [1]


def test_versions_by_alias_and_number(here: Registry) -> None:
    here.register("best", alias="champion")
    key = here.lab.records["train.bam"].key
    assert {
        which: (registry.version_tags(here.client, "best", which) or {}).get("bam.key") for which in ("@champion", "1")
    } == {
        "@champion": key,
        "1": key,
    }
    missing = [("best", "2"), ("best", "@other"), ("none", "1"), ("none", "@champion")]
    assert [registry.version_tags(here.client, name, which) for name, which in missing] == [None] * 4


def test_through_a_server_it_is_the_same(here: Registry) -> None:
    by_file = here.register(NAMES[1], alias="champion")
    with serve(here.tracker.tracking_uri, here.lab.folder / "mlflow", port=0) as url:
        remote = Registry(here.lab, MlflowTracker(url, str(here.lab.folder)))
        assert registry.find_version(remote.client, NAMES[1], here.lab.records["train.bam"]) == by_file
        remote.register(NAMES[1], "train.btx", alias="champion")
        assert registry.version_tags(remote.client, "none", "@x") is None
        assert registry.version_tags(remote.client, NAMES[1], "@x") is None
    state = here.state()
    assert state["models"] == {NAMES[1]: {"champion": "2"}}
    assert state["tags"] == {
        "train.bam": [{"name": NAMES[1], "version": 1}],
        "train.btx": [{"name": NAMES[1], "version": 2}],
    }
    sources = {version.source for version in here.client.search_model_versions()}
    assert sources == {f"models:/{here.lab.records[stage].mlflow['model_id']}" for stage in BEHIND}
