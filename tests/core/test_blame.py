"""Who made a tensor, from records and JSON alone: trained, mixed, edited, back to a seed's random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import UsageError
from bam_core.graph.blame import Origin, blame, expert_index, parse_tensor, to_json, to_text
from bam_core.graph.record import Record
from bam_core.seeds import child_seed

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
MIXTURE = replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(6, split=2), experts=("seed", "code", "law"))
GROWN = replace(DENSE, attention=AttentionExperts(4, 4), ffn=FFNExperts(8, split=2), experts=(*MIXTURE.experts, "math"))
STAGES = {"seed": "seed", "code": "expert.code", "law": "expert.law"}
W_Q, W_UP, NORM, ROUTER = "blocks.1.attn.w_q", "blocks.1.ffn.w_up", "norm.weight", "blocks.1.attn.router"


def key(stage: str) -> str:
    return stage.encode().hex().ljust(64, "0")


def digest(stage: str, tensor: str) -> str:
    return f"{stage}/{tensor}"


class Store:
    """Records and files of seed, two experts, mix.bam, train.bam and edit.grown (math added to train.bam)."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Record] = {}
        self.files: dict[tuple[str, str], dict[str, Any]] = {}
        self.add("data.law", {}, None)
        self.add("seed", {}, DENSE, init_seed=42)
        for name in ("code", "law", "math"):
            self.add(f"expert.{name}", {"seed": "seed", "data.law": "data.law"}, DENSE)
        self.add("mix.bam", {stage: stage for stage in STAGES.values()}, MIXTURE, seed=9)
        self.files["mix.bam", key("mix.bam")]["mix.json"] = {"experts": STAGES, "tensors": self.mixed()}
        self.add("train.bam", {"mix": "mix.bam", "data.law": "data.law"}, MIXTURE)
        self.add("edit.grown", {"base": "train.bam", "expert": "expert.math"}, GROWN)
        self.files["edit.grown", key("edit.grown")]["edit.json"] = {
            "operation": "add",
            "name": "math",
            "router_row": "zeros",
            "tensors": self.edited(),
        }

    def add(self, stage: str, inputs: Mapping[str, str], config: ModelConfig | None, **settings: int) -> None:
        parents = {role: self.records[parent, key(parent)].ref for role, parent in inputs.items()}
        self.records[stage, key(stage)] = Record(
            stage, key(stage), {"config": settings}, parents, (), f"bytes of {stage}", {}, {}, 0.0, 1.0, 1
        )
        if config is not None:
            tensors = {name: digest(stage, name) for name in (W_Q, W_UP, NORM, ROUTER)}
            self.files[stage, key(stage)] = {"config.json": config.to_json() | {"bam": {"tensors": tensors}}}

    def mixed(self) -> dict[str, Any]:
        def of(tensor: str) -> list[dict[str, str]]:
            return [
                {"expert": name, "tensor": tensor, "sha256": digest(stage, tensor)} for name, stage in STAGES.items()
            ]

        return {
            W_Q: {"op": "stack", "from": of(W_Q), "sha256": "x"},
            W_UP: {"op": "stack", "from": of(W_UP), "factor": 2.0, "sha256": "x"},
            NORM: {"op": "ties", "from": of(NORM), "sha256": "x"},
            ROUTER: {"op": "fresh", "from": [], "init": "centroid", "sha256": "x"},
        }

    def edited(self) -> dict[str, Any]:
        def read(role: str, stage: str, tensor: str) -> dict[str, str]:
            return {"input": role, "tensor": tensor, "sha256": digest(stage, tensor)}

        slots = [*(["base", i] for i in range(3)), ["expert", 0]]
        base = {tensor: read("base", "train.bam", tensor) for tensor in (W_Q, NORM, ROUTER)}
        return {
            W_Q: {"op": "append", "from": [base[W_Q], read("expert", "expert.math", W_Q)], "slots": slots},
            NORM: {"op": "keep", "from": [base[NORM]]},
            ROUTER: {"op": "append", "from": [base[ROUTER]], "slots": slots},
        }

    def blame(self, stage: str, tensor: str, index: int | None = None) -> Origin:
        return blame(self.records[stage, key(stage)], tensor, index, self.records, self.files)


def chain(origin: Origin) -> list[tuple[str, str | None, str, str | None]]:
    """(stage, expert, op, digest) down the only parents."""
    assert len(origin.parents) <= 1, [parent.stage for parent in origin.parents]
    this = (origin.stage, origin.expert, origin.op, origin.digest)
    return [this, *(step for parent in origin.parents for step in chain(parent))]


def test_one_experts_part_goes_back_to_the_seeds_random_numbers() -> None:
    found = Store().blame("train.bam", W_Q, 2)
    assert chain(found) == [
        ("train.bam", "2: law", "trained", digest("train.bam", W_Q)),
        ("mix.bam", "2: law", "stack", digest("mix.bam", W_Q)),
        ("expert.law", None, "trained", digest("expert.law", W_Q)),
        ("seed", None, "trained", digest("seed", W_Q)),
        ("seed", None, "random", None),
    ]
    leaf = found.parents[0].parents[0].parents[0].parents[0]
    assert leaf.detail == f"init seed 42, its own {child_seed(42, W_Q)}"


@pytest.mark.parametrize(("index", "stage"), [(0, "seed"), (1, "seed"), (2, "expert.code"), (5, "expert.law")])
def test_a_column_group_comes_from_its_dense_model(index: int, stage: str) -> None:
    mixed = Store().blame("mix.bam", W_UP, index)
    assert [parent.stage for parent in mixed.parents] == [stage]
    assert mixed.detail == "times 2"
    assert mixed.expert == f"{index}: {MIXTURE.expert_labels('ffn')[index]}"


def test_a_whole_stack_and_a_merged_tensor_come_from_all() -> None:
    store = Store()
    for tensor, op in ((W_Q, "stack"), (NORM, "ties")):
        mixed = store.blame("mix.bam", tensor)
        assert (mixed.op, [parent.stage for parent in mixed.parents]) == (op, list(STAGES.values()))


def test_a_new_router_comes_from_nothing_but_its_seed() -> None:
    router = Store().blame("mix.bam", ROUTER, 1)
    assert (router.op, router.parents) == ("fresh", ())
    assert router.detail == f"centroid, seed 9, its own {child_seed(9, ROUTER)}"


def test_an_edit_is_followed_to_the_mixture_or_to_the_expert() -> None:
    store = Store()
    old, new = store.blame("edit.grown", W_Q, 1), store.blame("edit.grown", W_Q, 3)
    assert [step[0] for step in chain(old)] == ["edit.grown", "train.bam", "mix.bam", "expert.code", "seed", "seed"]
    assert [step[0] for step in chain(new)] == ["edit.grown", "expert.math", "seed", "seed"]
    assert (new.expert, new.op, new.detail) == ("3: math", "append", "add math")
    assert new.parents[0].digest == digest("expert.math", W_Q)
    row = store.blame("edit.grown", ROUTER, 3)
    assert (row.parents, row.detail) == ((), "add math, fresh (zeros)")
    assert [parent.stage for parent in store.blame("edit.grown", W_Q).parents] == ["train.bam", "expert.math"]
    assert store.blame("edit.grown", NORM).op == "keep"


def test_an_ancestor_that_is_gone_is_marked_missing() -> None:
    store = Store()
    del store.records["expert.law", key("expert.law")]
    gone = store.blame("train.bam", W_Q, 2).parents[0].parents[0]
    assert (gone.stage, gone.missing, gone.parents) == ("expert.law", True, ())
    assert gone.digest == digest("expert.law", W_Q), "mix.json still says what it was"
    assert "missing: gone from the store" in to_text(gone)
    del store.records["mix.bam", key("mix.bam")]
    assert store.blame("train.bam", W_Q, 2).parents[0].missing


def test_an_ancestor_that_was_made_again_is_marked_replaced() -> None:
    store = Store()
    node = ("expert.law", key("expert.law"))
    store.records[node] = replace(store.records[node], digest="other bytes")
    law = store.blame("mix.bam", W_Q, 2).parents[0]
    assert law.replaced
    assert "replaced: made again since" in to_text(law)
    assert not store.blame("mix.bam", W_Q, 1).parents[0].replaced

    store = Store()
    store.files[node]["config.json"]["bam"]["tensors"][W_Q] = "another digest"
    law = store.blame("mix.bam", W_Q, 2).parents[0]
    assert (law.replaced, law.digest) == (True, digest("expert.law", W_Q))


def test_what_is_not_written_down_is_said() -> None:
    """Folders from before digests were kept; files that are gone."""
    store = Store()
    store.files["train.bam", key("train.bam")] = {"config.json": MIXTURE.to_json()}
    del store.files["mix.bam", key("mix.bam")]
    trained = store.blame("train.bam", W_Q, 2)
    assert (trained.digest, trained.expert) == (None, "2: law")
    assert (trained.parents[0].op, trained.parents[0].detail) == ("mixed", "mix.json does not say how")
    assert "sha256 not recorded" in to_text(trained)


def test_text_draws_a_shared_ancestor_once() -> None:
    lines = to_text(Store().blame("mix.bam", NORM)).splitlines()
    drawn = [line.split("@")[0].lstrip("│├└─ ") for line in lines]
    leaf = f"random initialisation: init seed 42, its own {child_seed(42, NORM)}"
    assert drawn[:4] == ["mix.bam", "seed", leaf, "expert.code"]
    assert [line.endswith("(above)") for line in lines if "seed@" in line] == [False, True, True]
    assert lines[0] == f"mix.bam@{key('mix.bam')[:12]}  {NORM}  ties  sha256 {digest('mix.bam', NORM)[:12]}"


def test_json_is_the_whole_tree() -> None:
    tree = to_json(Store().blame("train.bam", W_Q, 2))
    assert tree["parents"][0]["parents"][0]["stage"] == "expert.law"
    assert {"stage", "key", "tensor", "expert", "op", "digest", "detail", "missing", "replaced", "parents"} == set(tree)


def test_tensors_are_named_with_or_without_an_expert() -> None:
    names = (W_Q, NORM)
    assert parse_tensor(W_Q, names) == (W_Q, None)
    assert parse_tensor(f"{W_Q}[law]", names) == (W_Q, "law")
    assert parse_tensor("layers.1.attn.w_q[ 2 ]", names) == (W_Q, "2")
    for wrong, hint in (
        ("blocks.1.attn.wq", f"did you mean '{W_Q}'"),
        (f"{W_Q}[", "TENSOR"),
        (f"{W_Q}[]", "TENSOR"),
        ("", "TENSOR"),
    ):
        with pytest.raises(UsageError, match=hint.replace("[", r"\[")):
            parse_tensor(wrong, names)


def test_experts_are_numbers_or_labels() -> None:
    labels = ("general", "law", "law#2")
    assert [expert_index(text, W_Q, labels) for text in ("0", "2", "law", "law#2")] == [0, 2, 1, 2]
    for wrong, hint in (("3", "from 0"), ("-1", "from 0"), ("lwa", "did you mean 'law'")):
        with pytest.raises(UsageError, match=hint):
            expert_index(wrong, W_Q, labels)
    with pytest.raises(UsageError, match="leave"):
        expert_index("0", NORM, ())
