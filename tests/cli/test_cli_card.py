"""`bam card` over a store with a tiny mixture: what its own folder lacks, it has from the records and runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bam_core.config import FFNExperts, ModelConfig
from bam_core.graph.record import InputRef, Record, artifact_digest
from bam_core.graph.runs import Run, RunStage
from infra.store import ArtifactStore

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
MIXTURE = replace(DENSE, ffn=FFNExperts(2), experts=("general", "law"))
STEP0 = {"seed": "general", "perplexity": {"general": {"law": 30.0}, "mixture": {"law": 20.0}}}
SCORES = {"domains": {"law": {"perplexity": 7.125, "bits_per_byte": 1.5, "tokens": 90}}, "average_perplexity": 7.125}


class Tiny:
    """The artifacts of one run of `tiny`, made by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(str(folder / "bam_store"))
        self.records: dict[str, Record] = {}
        self.make("data.general", {}, config=text_of("python-docs"))
        self.make("data.law", {}, config=text_of("jsonl"), licence="CC-BY-4.0")
        self.make("seed", model(DENSE), "data.general", train_tokens=1000, train_flops=10**9)
        self.make("expert.law", model(DENSE), "seed", "data.law", "data.general", train_tokens=500, train_flops=10**9)
        mix = {"variant": {"name": "bam", "ffn": {}}, "tensors": {}, "receipt": {"step0": STEP0}}
        parents = ("seed", "expert.law", "data.general", "data.law")
        self.make("mix.bam", model(MIXTURE) | {"mix.json": json.dumps(mix)}, *parents)
        self.make("train.bam", model(MIXTURE), "data.general", "data.law", mix="mix.bam", train_tokens=300)
        scored = {"perplexity.json": json.dumps({"models": {"train.bam": SCORES, "seed": SCORES}})}
        self.make("evaluate", scored, "seed", "train.bam", "data.law", config={"models": ["seed", "train.bam"]})

    def make(
        self, stage: str, files: dict[str, str], *parents: str, config: Any = None, mix: str = "", **more: Any
    ) -> Record:
        key = key_of(stage)
        licence = {name: more.pop(name) for name in ("licence",) if name in more}
        roles = {parent: parent for parent in parents} | ({"mix": mix} if mix else {})
        with self.store.scratch(stage, key) as out:
            for name, text in ({"stats.json": "{}"} | files).items():
                (out / name).write_text(text)
            outputs = self.store.hash_outputs(out)
            record = Record(
                stage=stage,
                key=key,
                payload={"config": config or {}},
                inputs={role: self.records[parent].ref for role, parent in roles.items()},
                outputs=outputs,
                digest=artifact_digest(outputs),
                metrics=more,
                provenance={
                    **{"git_commit": "f" * 40, "dirty": False, "run": "tiny-1", "pipeline": "tiny"},
                    **{"argv": ["/x/bam", "run", "tiny.yaml", "--set", "seed=1"], **licence},
                },
                started=1_700_000_000.0 + len(self.records),
                ended=1_700_000_003.5 + len(self.records),
                attempt=1,
            )
            self.store.commit(out, record)
        self.records[stage] = record
        return record

    def note_run(self, name: str, started: float, **licences: str) -> None:
        domains = {domain: {"source": {"kind": "jsonl", "licence": licence}} for domain, licence in licences.items()}
        stages = {stage: RunStage(record.key, "reuse", {}) for stage, record in self.records.items()}
        self.store.runs.write(Run(name, "tiny", "done", started, started + 1, {"domains": domains}, stages, {}))


def key_of(stage: str) -> str:
    return hashlib.sha256(stage.encode()).hexdigest()


def text_of(kind: str) -> dict[str, Any]:
    domain = "law" if kind == "jsonl" else "general"
    return {"domain": domain, "source": {"kind": kind, "digest": key_of(kind)}}


def model(config: ModelConfig) -> dict[str, str]:
    carried = [{"domain": "medicine", "kind": "hf", "digest": "m", "licence": "MIT", "dataset": "them/notes"}]
    return {"config.json": json.dumps(config.to_json() | {"bam": {"texts": carried}}), "MODEL_CARD.md": "# own\n"}


@pytest.fixture
def tiny(here: Path) -> Tiny:
    return Tiny(here)


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_card_has_evaluation_licences_commands_and_lineage(bam, tiny):
    card = bam("card", "train.bam").out
    for part in (
        "# train.bam",
        "The mixture bam, trained on all domains.",
        "| **this model** (train.bam) | **7.12** | **7.12** |",
        "| law | jsonl | CC-BY-4.0 |",
        "| general | python-docs | PSF-2.0 |",
        "| medicine | hf: `them/notes` | MIT | `m` |",
        "| this mixture | **20.00** |",
        f"git checkout {'f' * 40}\nbam run tiny.yaml --set seed=1 --until train.bam",
        "| run | `tiny-1` |",
        f"| `expert.law@{key_of('expert.law')[:12]}` |",
    ):
        assert part in card
    data = front(card)
    assert data["base_model"] == [f"{stage}-{key_of(stage)[:12]}" for stage in ("seed", "expert.law")]
    assert data["datasets"] == ["data.general", "data.law", "them/notes"]
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 7.125


def test_the_licence_is_the_one_that_the_newest_run_states(bam, tiny):
    tiny.note_run("tiny-2", 5.0, law="CC-BY-SA-4.0")
    tiny.note_run("tiny-3", 6.0)
    assert "| law | jsonl | CC-BY-SA-4.0 |" in bam("card", "train.bam").out
    tiny.note_run("tiny-4", 7.0, law="by agreement")
    assert "| law | jsonl | by agreement |" in bam("card", "expert.law").out


def test_a_model_that_was_made_again_has_not_been_evaluated(bam, tiny):
    tiny.make("train.bam", model(MIXTURE) | {"new.txt": "other bytes"}, "data.law", mix="mix.bam")
    card = bam("card", "train.bam").out
    assert "## Evaluation" not in card
    assert "model-index" not in front(card)


def test_json_and_a_file_that_is_never_overwritten(bam, tiny, here):
    printed = bam("card", "train.bam").out
    answer = json.loads(bam("card", "train.bam", "--json").out)
    assert (answer["stage"], answer["key"], answer["card"]) == ("train.bam", key_of("train.bam"), printed)
    written = bam("card", "train.bam", "--out", "card.md")
    assert (written.status, written.out) == (0, "card.md: the card of train.bam\n")
    assert (here / "card.md").read_text() == printed
    again = bam("card", "seed", "--out", "card.md")
    assert (again.status, again.out) == (2, "")
    assert "card.md exists already: nothing was written" in again.err
    assert (here / "card.md").read_text() == printed
    nowhere = bam("card", "seed", "--out", "no/such/folder/card.md")
    assert (nowhere.status, nowhere.err) == (
        *(2, "bam: no/such/folder/card.md: cannot be written: No such file or directory\n"),
    )


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("data.law", "data.law: data.law makes no model"),
        ("train.bmm", "did you mean 'train.bam'?"),
        ("train.bam@0000", "names no artifact: train.bam@"),
    ],
)
def test_what_has_no_card(bam, tiny, ref, words):
    answer = bam("card", ref)
    assert (answer.status, answer.out) == (2, "")
    assert words in answer.err


def test_damaged_files_and_a_missing_parent(bam, tiny):
    folder = Path(tiny.store.artifact_uri("mix.bam", key_of("mix.bam")))
    (folder / "mix.json").write_text("{")
    answer = bam("card", "train.bam")
    assert answer.status == 1
    assert f"mix.bam@{key_of('mix.bam')[:12]}: mix.json cannot be read as JSON" in answer.err
    (folder / "record.json").unlink()
    answer = bam("card", "train.bam")
    assert answer.status == 0
    assert f"| `mix.bam@{key_of('mix.bam')[:12]}` | gone from the store |" in answer.out


def test_a_record_whose_parents_never_were(bam, tiny):
    stray = replace(tiny.records["seed"], inputs={"tokenizer": InputRef("tokenizer", "0" * 64, "1" * 64)})
    folder = Path(tiny.store.artifact_uri("seed", stray.key))
    (folder / "record.json").write_text(json.dumps(stray.to_json()))
    assert "| `tokenizer@000000000000` | gone from the store |" in bam("card", "seed").out
