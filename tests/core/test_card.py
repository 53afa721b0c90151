"""Model cards: what Hugging Face's own parser and a Markdown renderer read in them, whatever people have written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from upcycle_models import DENSE, NAMES

from bam_core.card import Evaluation, Made, Mixed, Subject, TextSource, bases_of, each_once, full_card, model_card
from bam_core.card.full import commands
from bam_core.card.licences import combined
from bam_core.card.markdown import code, escaped, front_matter, one_line, table
from bam_core.card.own import hub_id
from bam_core.config import AttentionExperts, FFNExperts
from bam_core.graph.record import InputRef, Record
from bam_core.graph.runs import Run, RunStage
from bam_core.nn.costs import params_total

MIXTURE = replace(DENSE, attention=AttentionExperts(4, 4), ffn=FFNExperts(4), experts=NAMES)
KEY, DIGEST = "0123456789ab" + "c" * 52, "d" * 64
SEED, LAW = InputRef("seed", "a" * 64, "1" * 64), InputRef("expert.law", "b" * 64, "2" * 64)
TEXTS = (
    TextSource("general", "python-docs", "5" * 64, "PSF-2.0"),
    TextSource("law", "hf", "6" * 64, "CC-BY-4.0", "pile-of-law/pile-of-law"),
)
HOSTILE = [
    "\"quoted\" and 'single'",
    "a: b, c # d",
    "{x: [1, 2]} & *anchor !tag %directive",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>&lt;&amp;",
    "x | y | z",
    "`tick` ``two``",
    "ends with `",
    "no",
    "1e3",
    "null",
    "---",
    "- item",
    "# head",
    "*bold* _em_ __strong__ ~~gone~~ [link](http://x) ![i](y)",
    "back\\slash \\| \\` \\",
    "two\nlines\r\n\u2028three\x00\x1b[31m",
    "\u202edesrever",
    "$math$ $$",
    "é 日本 😀 \ufeff \ud800",
    "e" * 300,
]


def subject(**fields: Any) -> Subject:
    given = {"stage": "seed", "key": KEY, "what": "A model.", "config": DENSE, "texts": TEXTS} | fields
    return Subject(**given)


def front(card: str) -> dict[str, Any]:
    """The front matter, as Hugging Face's own class reads it and as it comes back from there."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    plain: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    assert yaml.safe_load(data.to_yaml()) == plain
    return plain


def html(card: str) -> str:
    found: str = MarkdownIt("commonmark").enable("table").render(ModelCard(card).text)
    return found


def shown(markdown: str) -> str:
    """What a reader sees of a table's only cell."""
    tokens = MarkdownIt("commonmark").enable("table").parse(table(["head"], [[markdown]]))
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 2, "a bar has made a cell of its own"
    parts = cells[1].children or []
    assert {part.type for part in parts} <= {"text", "text_special", "code_inline"}, "it is read as more than text"
    return "".join(part.content for part in parts)


# --- text that anybody wrote


@settings(deadline=None)
@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_comes_back_from_yaml(text: str, number: float) -> None:
    data = {"a": text, "list": [text, {"x": text, "y": [number]}], "number": number, f"k{text}": {"deep": {"n": 1}}}
    line = one_line(text)
    wanted = {"a": line, "list": [line, {"x": line, "y": [number]}], "number": number}
    wanted[one_line(f"k{text}")] = {"deep": {"n": 1}}
    assert yaml.safe_load(front_matter(data).strip("-")) == wanted


@settings(deadline=None)
@given(st.text())
def test_any_text_is_shown_as_text(text: str) -> None:
    assert shown(escaped(text)) == one_line(text)
    assert shown(code(text)) == one_line(text)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_break_neither_yaml_nor_markdown_nor_html(name: str) -> None:
    assert shown(escaped(name)) == one_line(name)
    assert shown(code(name)) == one_line(name)
    card = model_card(
        subject(
            stage=name,
            what=f"The expert {name}.",
            config=replace(MIXTURE, experts=(name, *NAMES[1:])),
            texts=(TextSource(name, name, name, name, name),),
            parents={name: InputRef(name, KEY, name)},
            phase={"shares": {name: 1.0}, "dtype": name},
            mixed=Mixed.of(name, mix_json(name)),
            facts={name: name},
        )
    )
    card.encode("utf-8")
    assert front(card)["data_licences"] == [{"domain": one_line(name), "licence": one_line(name)}]
    page = html(card)
    for tag in ("<script", "<img", "<a ", "<del"):
        assert tag not in page
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 7
    if one_line(name).isalnum():
        assert f"<h1>{one_line(name)}</h1>" in page


# --- the model's own card


def test_the_card_says_what_it_is_and_what_made_it() -> None:
    config = replace(MIXTURE, attention=AttentionExperts(4, 2, kv="shared"))
    mix = InputRef("mix.bam", "e" * 64, "f" * 64)
    card = model_card(subject(stage="train.bam", config=config, parents={"mix": mix}, facts={"made for": "a test"}))
    for part in (
        "\n# train.bam\n\nA model.\n",
        f"| key | `{KEY}` |",
        "| made for | a test |",
        "general, code, law, math; top 2 of 4, softmax_topk; shared keys and values",
        f"| parameters | {params_total(config):,}, of which",
        f"| mix | `mix.bam` | `{'e' * 64}` | `{'f' * 64}` |",
    ):
        assert part in card
    ffn = FFNExperts(6, 2, slots=("general", "general", "law"), split=2, layers=(1,))
    wanted = "general/1, general/2, general#2/1, general#2/2, law/1, law/2; top 2 of 6, softmax_topk; in layers 1 |"
    assert f"| FFN experts | {wanted}" in model_card(subject(config=replace(MIXTURE, ffn=ffn)))
    seed = model_card(subject())
    assert "random weights" in seed
    assert "experts" not in seed


def test_the_front_matter_of_an_expert_and_of_a_mixture() -> None:
    expert = front(model_card(subject(stage="expert.law", parents={"seed": SEED}, bases={"seed": SEED})))
    assert expert == {
        "library_name": "bam",
        "pipeline_tag": "text-generation",
        "tags": ["bam"],
        "license": "other",
        "license_name": "see-data-licences",
        "datasets": ["data.general", "pile-of-law/pile-of-law"],
        "base_model": ["seed-aaaaaaaaaaaa"],
        "base_model_relation": "finetune",
        "metrics": ["perplexity"],
        "data_licences": [
            {"domain": "general", "licence": "PSF-2.0"},
            {"domain": "law", "licence": "CC-BY-4.0"},
        ],
    }
    mixture = front(model_card(subject(stage="mix.bam", config=MIXTURE, bases={"seed": SEED, "law": LAW})))
    assert mixture["base_model"] == ["seed-aaaaaaaaaaaa", "expert.law-bbbbbbbbbbbb"]
    assert mixture["base_model_relation"] == "merge"
    assert mixture["tags"] == ["bam", "mixture-of-experts", "merge", "upcycling"]
    soup = front(model_card(subject(stage="mix.soup", mixed=Mixed.of("mix.soup", {}), bases={"seed": SEED})))
    assert soup["base_model_relation"] == "merge"
    assert "mixture-of-experts" not in soup["tags"]
    assert "base_model" not in front(model_card(subject()))


def test_a_trained_mixture_is_based_on_the_models_that_it_was_mixed_of() -> None:
    data = InputRef("data.law", "9" * 64, "8" * 64)
    mix = record("mix.bam", inputs={"seed": SEED, "expert.law": LAW, "data.law": data})
    assert bases_of({"mix": mix.ref, "data.law": data}, mix) == {"seed": SEED, "expert.law": LAW}
    edit = record("edit.more", inputs={"base": mix.ref})
    assert bases_of({"mix": edit.ref, "data.law": data}, edit) == {"mix": edit.ref}


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        (["CC-BY-4.0", "cc-by-4.0"], {"license": "cc-by-4.0"}),
        (["PSF-2.0"], {"license": "other", "license_name": "psf-2.0"}),
        (["by agreement with the court"], {"license": "other", "license_name": "see-data-licences"}),
        (["MIT", "Apache-2.0"], {"license": "other", "license_name": "see-data-licences"}),
        (["MIT", None], {"license": "other", "license_name": "see-data-licences"}),
        ([None, None], {"license": "unknown"}),
        ([], {"license": "unknown"}),
    ],
)
def test_one_licence_stands_for_all_texts_only_if_all_state_it(
    licences: list[str | None], wanted: dict[str, str]
) -> None:
    assert combined(licences) == wanted


def test_each_text_has_its_licence_and_one_without_says_so() -> None:
    card = model_card(subject(texts=(*TEXTS, TextSource("code", "jsonl", "7" * 64))))
    assert f"| general | python-docs | PSF-2.0 | `{'5' * 64}` |" in card
    assert f"| law | hf: `pile-of-law/pile-of-law` | CC-BY-4.0 | `{'6' * 64}` |" in card
    assert f"| code | jsonl | not stated | `{'7' * 64}` |" in card


def test_a_seeds_own_card_is_the_same_whatever_its_recipe_states() -> None:
    silent = tuple(replace(text, licence=None, dataset=None) for text in TEXTS)
    cards = {model_card(subject(texts=texts).without_statements()) for texts in (TEXTS, silent)}
    (card,) = cards
    assert "PSF-2.0" not in card
    assert front(card).keys().isdisjoint({"license", "data_licences"})
    assert f"| law | hf | `{'6' * 64}` |" in card


def test_a_text_counts_once_and_a_licence_wins_over_none() -> None:
    silent, other = replace(TEXTS[0], licence=None), replace(TEXTS[0], digest="8" * 64)
    assert each_once([silent, TEXTS[0], other, replace(TEXTS[0], licence="MIT")]) == (TEXTS[0], other)


def test_texts_survive_a_file_and_what_is_none_is_left_out() -> None:
    written = json.loads(json.dumps([text.to_json() for text in TEXTS]))
    assert tuple(TextSource.read(written)) == TEXTS
    assert not list(TextSource.read([1, {"domain": "law"}, {"domain": [], "kind": "x"}, None]))
    assert not list(TextSource.read("texts"))
    assert [text.licence for text in TextSource.read([{"domain": "law", "kind": "x", "licence": {"a": 1}}])] == [None]


def test_a_data_record_says_which_text_it_is() -> None:
    config = {"domain": "law", "source": {"kind": "hf", "digest": "6" * 64, "split": "train"}}
    said = {"licence": "CC-BY-4.0", "dataset": "pile-of-law/pile-of-law"}
    assert TextSource.of(record("data.law", config=config, provenance=said)) == TEXTS[1]


@pytest.mark.parametrize("name", ["a b/c", "..x..y", "a--b", "ü", "x" * 200, "-.-"])
def test_an_id_is_one_that_the_hub_takes(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(hub_id(name))


# --- mixtures


def mix_json(expert: str = "law") -> dict[str, Any]:
    both = [{"expert": name, "tensor": "x", "sha256": "0"} for name in ("general", expert)]
    blocks: dict[str, Any] = {}
    for layer in range(3):
        blocks |= {
            f"blocks.{layer}.norm.weight": {"op": "mean", "from": both},
            f"blocks.{layer}.attn.w_q": {"op": "stack", "from": both} if layer else {"op": "mean", "from": both},
            f"blocks.{layer}.ffn.w_down": {"op": "stack", "from": both, "factor": 2.0 + layer / 2},
            f"blocks.{layer}.ffn.w_up": {"op": "stack", "from": both, "factor": 2.0 + layer / 2},
            f"blocks.{layer}.ffn.router": {"op": "fresh", "from": [], "init": "centroid"},
        }
    return {
        "variant": {
            **{"name": "bam", "attention": {"layers": [1, 2]}, "ffn": {"top_k": 2, "scale": "experts"}},
            **{"router_init": "centroid", "merge": {"method": "ties", "density": 0.3}},
        },
        "tensors": {
            "embed.weight": {"op": "mean", "from": both},
            **blocks,
            "norm.weight": {"op": "mean", "from": both},
        },
        "receipt": {
            "experts": {
                "general": {"max_abs_diff": 1e-15, "max_abs_value": 2.5, "layer": 0, "branch": "ffn"},
                expert: {"max_abs_diff": 3e-15, "max_abs_value": 1.5, "layer": 1, "branch": "ffn"},
            },
            "random": [],
            "step0": {
                "tokens_per_domain": {"general": 4096, expert: 4096},
                "seed": "general",
                "perplexity": {
                    "general": {"general": 31.98, expert: 1292.4, "average": 22.45},
                    expert: {"general": 87.82, expert: 6.53, "average": 47.175},
                    "mixture": {"general": 127.4, expert: None, "average": None},
                },
                "warnings": ["routers | tell little"],
            },
        },
    }


def test_the_rules_are_in_words_and_every_tensor_is_in_one_row() -> None:
    mixed = Mixed.of("mix.bam", mix_json())
    card = model_card(subject(stage="mix.bam", config=MIXTURE, mixed=mixed))
    rows = card.split("| tensors | made by | from |")[1].split("\n\n")[0].splitlines()[2:]
    assert rows == [
        "| `embed.weight`, `blocks.*.norm.weight`, `norm.weight` | mean | general, law |",
        "| `blocks.*.attn.w_q` (layers 0) | mean | general, law |",
        "| `blocks.*.ffn.{w_down, w_up}` | stacked, one slice per expert, times 2 to 3 | general, law |",
        "| `blocks.*.ffn.router` | fresh: centroid | - |",
        "| `blocks.*.attn.w_q` (layers 1, 2) | stacked, one slice per expert | general, law |",
    ]
    for words in (
        "- **Attention**: one expert per dense model; every token goes to all of them; each with queries, keys, values "
        "and outputs of its own; gate softmax_topk; in layers 1, 2, merged in the others.",
        "- **FFN**: one expert per dense model; a token goes to the best 2; gate softmax_topk; output matrices "
        "multiplied, so that the branch starts at the scale of a dense one.",
        "- **All else, where it is not new**: TIES, density 0.3.",
        "- **Routers**: new, fitted on text (centroid).",
    ):
        assert words in card


def test_what_held_at_step_0() -> None:
    card = model_card(subject(stage="mix.bam", config=MIXTURE, mixed=Mixed.of("mix.bam", mix_json())))
    for part in (
        "to within 3.0e-15 (of outputs up to 1.5)",
        "on 4,096 tokens of each",
        "|  | general | law | average |",
        "| general (seed) | **31.98** | 1,292 | **22.45** |",
        "| law | 87.82 | **6.53** | 47.17 |",
        "| this mixture | 127.40 | - | - |",
        "- Warning: routers \\| tell little",
        "It has not been trained since it was mixed",
    ):
        assert part in card
    trained = model_card(subject(stage="train.bam", config=MIXTURE, mixed=Mixed.of("mix.bam", mix_json())))
    assert "Of `mix.bam` as it was written, before any training." in trained
    assert "It has not been trained" not in trained


def test_an_older_mix_json_gives_a_card_with_less_in_it() -> None:
    card = model_card(subject(stage="mix.bam", config=MIXTURE, mixed=Mixed.of("mix.bam", {})))
    assert "## How it was mixed" in card
    assert "Perplexity on training text" not in card


def test_what_an_edit_did() -> None:
    edit = {"perplexity": {"before": {"law": 5.0}, "after": {"law": 5.25}}, "logit_difference": 0.125}
    card = model_card(subject(stage="edit.more", config=MIXTURE, edit=edit, bases={"base": LAW}))
    assert "the largest change of a logit is 0.125" in card
    assert "| after | 5.25 |" in card
    assert front(card)["base_model_relation"] == "merge"


def test_a_training_tells_its_tokens_flops_and_phase() -> None:
    figures = {"loss": 3.72589, "train_tokens": 503808, "train_flops": 7.99e12, "lineage_tokens": 2510848}
    phase = {"lr": 0.0015, "batch_tokens": 4096, "seq_len": 256, "shares": {"law": 0.75, "code": 0, "general": 0.25}}
    card = model_card(subject(stage="train.bam", figures=figures, phase=phase))
    for row in (
        "| tokens trained in this stage | 503,808 |",
        "| tokens behind it in all | 2,510,848 |",
        "| FLOPs of this stage | 7.99e+12 |",
        "| FLOPs behind it in all | - |",
        "| final training loss | 3.7259 |",
        "| peak learning rate | 0.0015 |",
        "| batch | 4,096 tokens, rows of 256 |",
        "| data | law 75%, general 25% |",
    ):
        assert row in card


# --- with what a store knows of it


def record(stage: str, key: str = KEY, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "stage": stage,
        "key": key,
        "payload": {"config": fields.pop("config", {})},
        "inputs": {},
        "outputs": (),
        "digest": DIGEST,
        "metrics": {},
        "provenance": {"git_commit": "f" * 40, "dirty": False, "argv": ["/x/bin/bam", "run", "quickstart"]},
        "started": 1_700_000_000.0,
        "ended": 1_700_000_083.0,
        "attempt": 1,
    }
    return Record(**given | fields)


TRAINED = record("train.bam", metrics={"train_tokens": 1000, "train_flops": 2e9}, inputs={"mix": LAW})
SCORES = {
    name: {
        "domains": {
            "general": {"perplexity": 30.0 + place, "bits_per_byte": 1.5, "tokens": 100},
            "law": {"perplexity": 8.0 - place, "bits_per_byte": 1.25, "tokens": 90},
        },
        "average_perplexity": 19.0,
    }
    for place, name in enumerate(("dense", "ensemble", "mix.bam", "mix.other", "seed", "train.bam"))
}


def evaluation(**fields: Any) -> Evaluation | None:
    inputs = {"train.bam": TRAINED.ref, "seed": SEED} | fields
    evaluate = record(
        "evaluate", inputs=inputs, config={"models": ["seed", "mix.bam", "mix.other", "train.bam", "dense"]}
    )
    return Evaluation.of(TRAINED, evaluate, {"models": SCORES})


def test_the_evaluation_is_in_a_table_and_in_the_model_index() -> None:
    made = Made(TRAINED, [record("mix.bam", "e" * 64), record("seed", "a" * 64)])
    card = full_card(subject(stage="train.bam", config=MIXTURE), made, evaluation())
    rows = card.split("| perplexity | general | law | average |")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("**this model** (train.bam)", "seed", "mix.bam", "dense", "the experts as an ensemble"),
    ]
    assert rows[0] == "| **this model** (train.bam) | 35.00 | **3.00** | **19.00** |"
    assert "| bits per byte | general | law |" in card
    assert "(90 to 100 tokens of each domain)" in card
    (index,) = front(card)["model-index"]
    assert index["name"] == "train.bam-0123456789ab"
    general, law = index["results"]
    assert law["dataset"]["type"] == "pile-of-law/pile-of-law"
    assert general["metrics"] == [
        {"type": "perplexity", "value": 35.0, "name": "perplexity"},
        {"type": "bits_per_byte", "value": 1.5, "name": "bits per byte"},
    ]
    results = ModelCard(card).data.eval_results
    assert {(result.dataset_name, result.metric_type) for result in results} == {
        *(("general", "perplexity"), ("general", "bits_per_byte")),
        *(("law", "perplexity"), ("law", "bits_per_byte")),
    }


def test_an_evaluation_of_other_bytes_is_none_of_this_model() -> None:
    assert evaluation() is not None
    assert evaluation(**{"train.bam": replace(TRAINED.ref, digest="0" * 64)}) is None
    assert "model-index" not in front(full_card(subject(stage="train.bam"), Made(TRAINED)))


def test_the_full_card_has_all_of_the_models_own_but_how_to_ask_for_more() -> None:
    here = subject(stage="train.bam", config=MIXTURE, mixed=Mixed.of("mix.bam", mix_json()), phase={"lr": 0.1})
    own = ModelCard(model_card(here)).text.split("## Use and reproduce")[0].split("\n\n")
    full = ModelCard(full_card(here, Made(TRAINED), evaluation())).text
    assert [part for part in own if part not in full] == []


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["/x/bin/bam", "run", "quickstart"], "bam run quickstart --until train.bam"),
        (
            ["bam", "--store", "s3://b/x", "run", "my recipe.yaml", "--set", "a.b=1", "--set=c=$d", "--json", "-v"],
            "bam run 'my recipe.yaml' --set a.b=1 --set 'c=$d' --until train.bam",
        ),
        (
            ["bam", "submit", "r.yaml", "--until", "evaluate", "--force", "seed", "--detach", "--address=http://h:1"],
            "bam run r.yaml --until train.bam",
        ),
        (
            ["bam", "stage", "train.bam", "r.yaml", "--input", "mix=mix.bam@12", "--executor", "local"],
            "bam stage train.bam r.yaml --input mix=mix.bam@12 --with-deps",
        ),
        (
            ["bam", "expert", "add", "train.bam", "--from", "expert.x", "--name", "x", "--store", "/secret"],
            "bam expert add train.bam --from expert.x --name x",
        ),
        (["python", "my.py"], "bam run tiny.yaml --until train.bam"),
        ([], "bam run tiny.yaml --until train.bam"),
    ],
)
def test_the_commands_are_those_that_were_given_for_this_stage(argv: list[str], wanted: str) -> None:
    provenance = {"git_commit": "f" * 40, "argv": argv, "pipeline": "tiny"}
    assert commands(replace(TRAINED, provenance=provenance)) == [f"git checkout {'f' * 40}", wanted]


def test_commands_of_a_record_that_knows_nothing() -> None:
    assert commands(replace(TRAINED, provenance={})) == ["bam run RECIPE --until train.bam"]
    run = Run("q-1", "q", "done", 1.0, 2.0, {}, {"train.bam": RunStage(KEY, "run", {})}, {"argv": ["bam", "run", "q"]})
    assert commands(replace(TRAINED, provenance={}), run) == ["bam run q --until train.bam"]


def test_uncommitted_changes_and_what_is_gone_are_told() -> None:
    dirty = {"git_commit": "f" * 40, "dirty": True, "dirty_diff_sha256": "9" * 64, "run": "tiny-1", "pipeline": "tiny"}
    seed = record("seed", "a" * 64)
    expert = record("expert.law", "b" * 64, inputs={"seed": SEED, "data.law": InputRef("data.law", "7" * 64, "x")})
    card = full_card(subject(stage="train.bam"), Made(replace(TRAINED, provenance=dirty), [expert, seed]))
    for part in (
        f"**The tree had changes that were not committed**, so the commit alone is not what ran; their diff has sha256 "
        f"`{'9' * 64}`.",
        "| run | `tiny-1` |",
        "| made | 2023-11-14 22:13 UTC, in 83 s |",
        "| `train.bam@0123456789ab` | `expert.law@bbbbbbbbbbbb` | 1,000 | 2.00e+09 | `ffffffffffff`+ |",
        "| `expert.law@bbbbbbbbbbbb` | `seed@aaaaaaaaaaaa`, `data.law@777777777777` | - | - | `ffffffffffff` |",
        "| `data.law@777777777777` | gone from the store | - | - | - |",
    ):
        assert part in card
    assert "not committed" not in full_card(subject(stage="train.bam"), Made(TRAINED))
