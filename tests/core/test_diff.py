"""`compare`: pairs of pipelines that differ in one thing, or several, and what is named first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bam_core.graph.diff import BYTES, NAME, UNKNOWN, Difference, compare
from bam_core.graph.key import describe_changes
from bam_core.graph.lineage import lineage
from bam_core.graph.record import Record
from tests.lineage_kit import key, of, quickstart, record, small, with_bytes


def compared(left: list[Record], right: list[Record], stage: str = "train.bam", other: str | None = None) -> Difference:
    return compare(
        lineage(left, of(left, stage).key, "up"),
        lineage(right, of(right, other or stage).key, "up"),
    )


def words(found: Difference) -> list[tuple[str, str, str]]:
    """(stage, kind, the changes as `bam plan` says them) of each cause, in order."""
    return [(cause.right[0], cause.kind, describe_changes(list(cause.changes))) for cause in found.causes]


def follow(found: Difference, cause: int = 0) -> set[str]:
    return {stage for stage, _ in found.causes[cause].follows}


def test_the_same_artifact_is_identical() -> None:
    found = compared(quickstart(), quickstart())
    assert found.is_empty
    assert (found.only_left, found.only_right) == ((), ())
    assert len(found.same) > 10


def test_two_mixtures_that_differ_in_one_domains_share_name_that_key_first() -> None:
    """The seed's share of a domain: everything after it follows."""
    data = "phases.seed.data={general: %s, law: %s}"
    left, right = quickstart(data % (0.9, 0.1)), quickstart(data % (0.8, 0.2))
    found = compared(left, right)
    assert words(found) == [("seed", "config", "phase.shares.general 0.9 -> 0.8, phase.shares.law 0.1 -> 0.2")]
    assert follow(found) == {"expert.code", "expert.law", "expert.math", "mix.bam", "train.bam"}
    assert {"tokenizer", "data.law", "source.law"} <= {stage for stage, _ in found.same}


def test_one_expert_alone() -> None:
    left = quickstart()
    right = quickstart("domains.law.expert.lr=1e-3")
    found = compared(left, right, "mix.bam")
    assert words(found) == [("expert.law", "config", "phase.lr 0.0015 -> 0.001")]
    assert follow(found) == {"mix.bam"}


def test_causes_are_named_from_the_earliest_on_and_each_with_what_follows_from_it() -> None:
    right = quickstart("phases.mixture.lr=2e-3", "phases.expert.lr=1e-3", "variants.bam.ffn.top_k=2")
    found = compared(quickstart(), right)
    stages = [stage for stage, _, _ in words(found)]
    assert set(stages[:3]) == {"expert.code", "expert.law", "expert.math"}
    assert stages[3:] == ["mix.bam", "train.bam"]
    assert words(found)[-1] == ("train.bam", "config", "phase.lr 0.0015 -> 0.002")
    assert found.follows == ()


def test_another_text_is_the_cause_of_all_that_names_its_content() -> None:
    """The tokenizer's configuration and the data's both hold the digest: they follow."""
    found = compared(quickstart(), quickstart(general="another text"))
    assert words(found) == [("source.general", "data", "source.digest changed")]
    assert {"tokenizer", "data.general", "data.law", "seed", "mix.bam", "train.bam"} <= follow(found)
    assert found.causes[0].changes[0].new == found.causes[0].right[1]


def test_a_text_read_otherwise_is_not_the_texts_fault() -> None:
    found = compared(quickstart(), quickstart("domains.law.max_bytes=1M"))
    assert words(found)[0][:2] == ("data.law", "config")
    assert "max_bytes" in words(found)[0][2]


def test_another_version_of_the_code() -> None:
    left = quickstart()
    seed = of(left, "seed")
    newer = replace(seed, key="f" * 64, payload={**seed.payload, "version": seed.payload["version"] + 1})
    found = compare(lineage([seed, *left], seed.key), lineage([newer, *left], newer.key))
    version = seed.payload["version"]
    assert words(found) == [("seed", "code", f"version {version} -> {version + 1}")]


def test_two_variants_of_one_recipe_differ_where_they_part() -> None:
    """Names differ along the way: what fills the same role is compared, and a name alone is no reason."""
    records = quickstart()
    found = compared(records, records, "train.bam", "train.btx")
    assert [(stage, kind) for stage, kind, _ in words(found)] == [("mix.btx", "config")]
    assert "variant.attention" in words(found)[0][2]
    assert [(left[0], right[0]) for left, right in found.follows] == [("train.bam", "train.btx")]
    assert {"seed", "expert.law"} <= {stage for stage, _ in found.same}


def test_a_domain_more_changes_what_is_mixed_and_is_on_one_side_only() -> None:
    more = "domains.poems={source: {kind: generated-math, documents: 5}}"
    found = compared(quickstart(), quickstart(more, poems="poems"), "mix.bam")
    assert [(stage, kind) for stage, kind, _ in words(found)] == [("mix.bam", "config")]
    assert "input expert.poems added" in [str(change) for change in found.causes[0].changes]
    assert {stage for stage, _ in found.only_right} == {"source.poems", "data.poems", "expert.poems"}
    assert found.only_left == ()


def test_a_name_is_the_cause_where_nothing_else_is() -> None:
    left = [record("seed"), record("mix.a", {"seed": "seed"}), record("mix.b", {"seed": "seed"})]
    named = [replace(r, payload={"stage": r.stage, "config": {}}) for r in left]
    found = compared(named, named, "mix.a", "mix.b")
    assert [(cause.kind, cause.follows) for cause in found.causes] == [(NAME, ())]


# --- the same key, other bytes ----------------------------------------------------------------------------------------


def rebuilt(records: list[Record], stage: str, **provenance: Any) -> list[Record]:
    """The pipeline as if `stage` had come out with other bytes, and all after it too."""
    found: dict[tuple[str, str], Record] = {}
    for old in records:
        inputs = {role: found[ref.stage, ref.key].ref for role, ref in old.inputs.items()}
        new = replace(old, inputs=inputs)
        if old.stage == stage or any(found[r.stage, r.key].digest != r.digest for r in old.inputs.values()):
            new = with_bytes(new, f"other {old.key}")
        if old.stage == stage:
            new = replace(new, provenance={**old.provenance, **provenance})
        found[old.stage, old.key] = new
    return list(found.values())


def test_other_bytes_under_the_same_key_name_what_it_was_made_with() -> None:
    left = quickstart()
    right = rebuilt(
        left,
        "expert.law",
        git_commit="beef" * 10,
        packages={"torch": "2.14.0", "ray": "2.60.0", "bam": "0.1.0", "numpy": "2.4.0"},
        ran_on=[{"host": "node-c"}],
    )
    found = compared(left, right)
    assert [(cause.right[0], cause.kind) for cause in found.causes] == [("expert.law", BYTES)]
    assert [str(change) for change in found.causes[0].changes] == [
        "provenance.commit c0ffee0000 -> beefbeefbe",
        "provenance.hosts node-a, node-b -> node-c",
        "provenance.packages.torch 2.13.0 -> 2.14.0",
        "provenance.workers 2 -> 1",
    ]
    assert found.causes[0].files == ("config.json", "model.safetensors")
    assert follow(found) == {"mix.bam", "train.bam"}


def test_other_bytes_without_a_reason_on_record_are_chance() -> None:
    left = quickstart()
    (cause,) = compared(left, rebuilt(left, "seed")).causes
    assert (cause.right[0], cause.kind, cause.changes) == ("seed", BYTES, ())


def test_an_input_that_was_made_again_between_two_artifacts() -> None:
    """One store: of the bytes that the first one read, no record is left."""
    left, right = quickstart(), quickstart("domains.law.expert.lr=1e-3")
    older, newer = of(left, "expert.law"), of(right, "expert.law")
    seed = with_bytes(of(left, "seed"), "made again")
    newer = replace(newer, inputs={**newer.inputs, "seed": seed.ref})
    store = [r for r in left if r.stage not in ("seed", "expert.law")] + [seed, older, newer]
    found = compare(lineage(store, older.key), lineage(store, newer.key))
    assert [(cause.right[0], cause.kind) for cause in found.causes] == [("seed", BYTES), ("expert.law", "config")]
    assert found.causes[0].files == ()


def test_equal_bytes_from_other_bytes_are_no_difference() -> None:
    left = quickstart()
    right = rebuilt(left, "data.law")
    (index,) = [number for number, r in enumerate(right) if r.stage == "expert.law"]
    assert compared(left, right, "tokenizer").is_empty
    assert not compared(left, right[: index + 1], "expert.law").is_empty


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_record_that_is_gone_cannot_say_why() -> None:
    left = quickstart()
    right = [r for r in quickstart("phases.seed.lr=1e-3") if r.stage != "seed"]
    found = compared(left, right)
    assert [(cause.right[0], cause.kind) for cause in found.causes] == [("seed", UNKNOWN)]
    assert "train.bam" in follow(found)


@pytest.mark.parametrize("payload", [{}, {"config": []}, {"config": {"domain": 3, "source": {"digest": 7}}}])
def test_a_damaged_payload_is_still_compared(payload: dict[str, Any]) -> None:
    left, right = record("seed"), replace(record("seed"), key="other", payload=payload)
    found = compare(lineage([left], left.key), lineage([right], right.key))
    assert not found.is_empty


def test_different_kinds_of_artifacts_can_be_compared() -> None:
    records = quickstart()
    found = compared(records, records, "seed", "train.bam")
    assert found.causes
    assert not found.is_empty


def test_json_names_paths_values_and_words() -> None:
    data = compared(quickstart(), quickstart("phases.seed.lr=1e-3"), "mix.bam").to_json()
    assert data["identical"] is False
    (cause,) = data["causes"]
    assert cause["changes"] == [
        {"path": ["config", "phase", "lr"], "old": 0.003, "new": 0.001, "words": "phase.lr 0.003 -> 0.001"}
    ]
    assert cause["right"]["stage"] == "seed"
    assert "mix.bam" in cause["follows"]
    assert data["left"]["stage"] == data["right"]["stage"] == "mix.bam"


def test_records_by_hand_without_payloads_of_their_inputs() -> None:
    """Older or foreign records: the edges decide what follows."""
    left = small()
    right = [replace(r, digest="other", metrics={}) if r.stage == "seed" else r for r in left]
    found = compare(lineage(left, key("seed")), lineage(right, key("seed")))
    assert [(cause.right[0], cause.kind) for cause in found.causes] == [("seed", BYTES)]
