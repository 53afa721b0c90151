"""`bam import-config`: configurations of mergekit-moe as recipes, and what is wrong with those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bam_core.errors import InvalidInput
from pipelines.mergekit.config import Source, moe_config
from pipelines.mergekit.recipe import Converted, convert
from pipelines.recipe import Recipe, load_recipe, recipe_from
from tests.task_kit import TOKENIZER

HIDDEN = """
base_model: org/Chat-7B
gate_mode: hidden # one of "hidden", "cheap_embed", or "random"
dtype: bfloat16
experts:
  - source_model: org/Chat-7B
    positive_prompts: ["Hello, who are you?", "I need help with"]
  - source_model: other/Bio_Chat-7B.v2@main
    positive_prompts:
      - "As a doctor of medicine,\\nI say: no"
    negative_prompts: ["a poem"]
    residual_scale: 0.5
  - source_model: models/code
    positive_prompts: ["def f(x):", "import this"]
    noise_scale: 1e-3
"""
COPIES = "base_model: models/small\ngate_mode: random\nexperts:\n" + "  - source_model: models/small\n" * 8
ADAPTER = """
base_model: {model: {path: models/base, revision: abc}}
gate_mode: cheap_embed
experts_per_token: 1
experts:
  - source_model: models/base@abc+adapters/law@v1
    positive_prompts: ["the court held that the contract is void from the start, and ordered costs"]
  - source_model: {model: {path: models/base, revision: abc}, lora: adapters/math}
    positive_prompts: ["12 + 7 = 19, since ten and two and seven make nineteen in all, as is known"]
"""
SHARED = """
base_model: models/a
architecture: qwen
gate_mode: uniform_random
experts:
  - source_model: models/a
  - source_model: models/b
shared_experts:
  - source_model: models/b
    positive_prompts: ["all"]
    residual_scale: 0.1
"""
GOOD = {"hidden": HIDDEN, "copies": COPIES, "adapter": ADAPTER, "shared": SHARED}


def converted(text: str) -> tuple[Converted, Recipe]:
    made = convert(moe_config(text, "moe.yaml"), "moe", "moe.prompts", "moe.yaml")
    return made, recipe_from(yaml.safe_load(made.text), "moe.recipe.yaml")


@pytest.mark.parametrize("name", GOOD)
def test_what_is_written_is_a_recipe_whose_comments_say_all_that_is_otherwise(name: str) -> None:
    made, recipe = converted(GOOD[name])
    comments = " ".join(line.strip().lstrip("# ") for line in made.text.splitlines() if line.strip().startswith("#"))
    assert made.notes
    for note in made.notes:
        assert note in comments
    moe = recipe.variants["moe"]
    assert (moe.attention, moe.merge, moe.ffn.gate) == ("merged", "seed", "topk_softmax")
    assert recipe.phases.mixture.tokens == 0
    assert (recipe.dense, recipe.ensemble) == (False, False)


def test_prompts_become_the_text_that_routers_are_fitted_on() -> None:
    made, recipe = converted(HIDDEN)
    assert list(recipe.domains) == ["chat-7b", "bio_chat-7b-v2", "code"]
    assert recipe.variants["moe"].ffn.experts == ["chat-7b", "bio_chat-7b-v2", "code"]
    assert recipe.variants["moe"].ffn.top_k == 2  # mergekit's default
    assert recipe.variants["moe"].router_init == "centroid"
    assert recipe.phases.seed.source == "org/Chat-7B"
    bio = recipe.domains["bio_chat-7b-v2"]
    assert (bio.expert.source, bio.expert.revision) == ("other/Bio_Chat-7B.v2", "main")
    assert made.files[bio.source.path] == ("As a doctor of medicine,\nI say: no",)
    assert made.files["moe.prompts/chat-7b.jsonl"] == ("Hello, who are you?", "I need help with")
    assert recipe.phases.seq_len == 4  # the fewest words of a domain
    for words in ("negative_prompts", "residual_scale: 0.5", "noise_scale: 0.001", "dtype: bfloat16"):
        assert [note for note in made.notes if words in note]


def test_copies_are_slots_of_one_expert() -> None:
    made, recipe = converted(COPIES)
    assert recipe.variants["moe"].ffn.experts == ["small"] * 8
    assert recipe.variants["moe"].router_init == "random"
    assert len(recipe.domains) == 2  # the fewest that a recipe has
    assert made.files == {}
    assert [note for note in made.notes if "one checkpoint" in note]


def test_adapters_of_the_base_are_experts_and_a_base_that_is_none_reads_all_prompts() -> None:
    made, recipe = converted(ADAPTER)
    assert (recipe.phases.seed.source, recipe.phases.seed.revision) == ("models/base", "abc")
    assert recipe.variants["moe"].ffn.experts == ["law", "math"]
    assert recipe.variants["moe"].ffn.top_k == 1
    experts = {
        name: (domain.expert.source, domain.expert.revision) for name, domain in list(recipe.domains.items())[1:]
    }
    assert experts == {"law": ("adapters/law", "v1"), "math": ("adapters/math", None)}
    both = made.files["moe.prompts/law.jsonl"] + made.files["moe.prompts/math.jsonl"]
    assert made.files["moe.prompts/base.jsonl"] == both
    assert recipe.phases.seq_len == 7  # half of the 14 words of each: two rows


def test_a_shared_expert_is_the_seeds() -> None:
    made, recipe = converted(SHARED)
    ffn = recipe.variants["moe"].ffn
    assert (ffn.shared_expert, ffn.scale, ffn.experts) == (True, "none", ["a", "b"])
    for words in ("models/b has no equal", "residual_scale: 0.1", "prompts of shared_experts", "uniform_random"):
        assert [note for note in made.notes if words in note]


def test_one_checkpoint_with_two_sets_of_prompts_is_two_domains() -> None:
    text = HIDDEN.replace("models/code", "org/Chat-7B")
    _, recipe = converted(text)
    assert recipe.variants["moe"].ffn.experts == ["chat-7b", "bio_chat-7b-v2", "chat-7b-2"]
    assert recipe.domains["chat-7b-2"].expert.source == "org/Chat-7B"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a", Source("a")),
        ("org/a@main", Source("org/a", "main")),
        ("a+b", Source("a", None, "b")),
        ("a@1+b@2", Source("a", "1", "b", "2")),
    ],
)
def test_a_reference_is_read_as_mergekit_reads_it(text: str, source: Source) -> None:
    base = text.partition("+")[0]
    config = moe_config(
        f"base_model: {base}\ngate_mode: random\nexperts_per_token: 1\nexperts: [{{source_model: {text}}}]\n", "x"
    )
    assert config.experts[0].source == source
    assert str(source) == text


BAD = {
    "all at once": (
        "base_model: a\ngate_mode: hiden\ndtype: int8\nexperts_per_token: 0\nextra: 1\nexperts:\n"
        "  - source_model: b\n    positive_promts: [x]\n  - positive_prompts: one\n    noise_scale: high\n  - c\n",
        [
            "line 2: gate_mode: 'hiden': must be one of hidden, hidden_avg",
            "did you mean 'hidden'",
            "line 3: dtype: 'int8'",
            "line 4: experts_per_token: 0",
            "line 5: extra: 1: is not a known key",
            "line 8: experts.0.positive_promts",
            "did you mean 'positive_prompts'",
            "line 7: experts.0: 'b': has no positive_prompts",
            "line 9: experts.1.source_model: is missing",
            "line 9: experts.1.positive_prompts: 'one': must be a list of texts",
            "line 10: experts.1.noise_scale: 'high': must be a number",
            "line 11: experts.2: 'c': must be a mapping",
        ],
    ),
    "a dense merge": ("merge_method: slerp\nmodels: []\n", ["line 1: merge_method: 'slerp': belongs to mergekit-yaml"]),
    "nothing there": ("", ["must be a mapping with base_model and experts"]),
    "no base, no experts": ("gate_mode: random\n", ["base_model: is missing", "experts: is missing"]),
    "too few experts": (
        "base_model: a\nexperts:\n  - source_model: b\n    positive_prompts: [x]\n",
        ["line 2: experts: 2: experts_per_token (its default) must be at most the number of experts, 1"],
    ),
    "prompts that are the same": (
        "base_model: a\nexperts:\n"
        "  - {source_model: b, positive_prompts: [x, y]}\n  - {source_model: c, positive_prompts: [y, x]}\n",
        ["line 4: experts.1.positive_prompts", "no router can tell the two apart"],
    ),
    "adapters of others": (
        "base_model: a+l\nexperts_per_token: 1\nexperts:\n  - {source_model: b+l, positive_prompts: [x]}\n",
        [
            "line 1: base_model: 'a+l': has an adapter",
            "line 4: experts.0.source_model: 'b+l': is an adapter of another",
        ],
    ),
    "references that cannot be read": (
        "base_model: a@b@c\nexperts_per_token: 1\nexperts:\n  - {source_model: a+b+c, positive_prompts: [x]}\n",
        ["line 1: base_model: 'a@b@c': must be a folder", "line 4: experts.0.source_model: 'a+b+c'"],
    ),
    "two shared experts": (
        COPIES + "shared_experts:\n  - source_model: a\n  - source_model: b\n",
        ["line 12: shared_experts: 2: must be one at most"],
    ),
    "no YAML": ("base_model: [a\nexperts: b\n", ["line 2"]),
    "given twice": ("base_model: a\nbase_model: b\nexperts: []\n", ["is given twice, in lines 1 and 2"]),
}


@pytest.mark.parametrize("name", BAD)
def test_everything_wrong_is_said_with_its_line(name: str) -> None:
    text, words = BAD[name]
    with pytest.raises(InvalidInput) as caught:
        moe_config(text, "moe.yaml")
    message = str(caught.value)
    for part in words:
        assert part in message


def test_the_command_writes_what_can_be_run_and_loses_nothing(bam, here: Path) -> None:
    (here / "Clown Car.yml").write_text(HIDDEN)
    ended = bam("import-config", "Clown Car.yml", "--json")
    assert ended.status == 0, ended.err
    value = json.loads(ended.out)
    assert (value["recipe"], value["experts"]) == ("clown-car.recipe.yaml", 3)
    recipe = load_recipe(value["recipe"])
    assert recipe.name == "clown-car"
    lines = (here / value["prompts"][1]).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "As a doctor of medicine,\nI say: no"}]
    assert {domain.source.path for domain in recipe.domains.values()} == set(value["prompts"])

    (here / "clown-car.recipe.yaml").write_text("mine")
    ended = bam("import-config", "Clown Car.yml")
    assert ended.status == 2
    assert "there already" in ended.err
    assert (here / "clown-car.recipe.yaml").read_text() == "mine"
    ended = bam("import-config", "Clown Car.yml", "-o", "new/one.yaml")
    assert ended.status == 0
    assert "bam run new/one.yaml --until mix.moe" in ended.out
    assert load_recipe("new/one.yaml").domains["code"].source.path == "new/one.prompts/code.jsonl"
    assert bam("import-config", "Clown Car.yml", "--replace").status == 0


def test_a_file_that_cannot_be_read_is_named(bam, here: Path) -> None:
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for argv, words in ((["nowhere.yaml"], "nowhere.yaml"), (["binary.yaml"], "UTF-8"), ([str(here)], "folder")):
        ended = bam("import-config", *argv)
        assert (ended.status, ended.out) == (2, "")
        assert words in ended.err


def write_llamas(here: Path) -> None:
    """Three checkpoints as transformers writes them, and a tokenizer that knows their prompts."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    for seed, name in enumerate(("base", "law", "math")):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
        model.save_pretrained(here / name)
        (here / name / "tokenizer.json").write_text(TOKENIZER)


@pytest.mark.long
def test_the_written_recipe_makes_the_mixture_of_these_checkpoints(bam, here: Path) -> None:
    write_llamas(here)
    prompts = {
        "law": ["the court held that a sum of 12 is void"],
        "math": ["Question: how many are 5 and 8? Answer: 13"],
    }
    experts = [{"source_model": name, "positive_prompts": own} for name, own in prompts.items()]
    (here / "moe.yaml").write_text(yaml.safe_dump({"base_model": "base", "gate_mode": "hidden", "experts": experts}))
    assert bam("import-config", "moe.yaml").status == 0
    ended = bam("run", "moe.recipe.yaml", "--until", "mix.moe", "--executor", "local", "--json")
    assert ended.status == 0, ended.err

    from safetensors.torch import load_file

    from bam_core.checkpoint import open_tensors
    from infra.store import ArtifactStore

    store = ArtifactStore(str(here / "bam_store"))
    folder = store.localize(store.records("mix.moe")[0])
    mixed = open_tensors(folder)
    theirs = {name: load_file(here / name / "model.safetensors") for name in ("base", "law", "math")}
    for layer in range(2):
        for ours, name in (("w_gate", "gate_proj"), ("w_up", "up_proj")):
            for e, expert in enumerate(("law", "math")):
                wanted = theirs[expert][f"model.layers.{layer}.mlp.{name}.weight"]
                assert mixed.get(f"blocks.{layer}.ffn.{ours}")[e].equal(wanted)
        for ours, name in (("w_q", "q_proj"), ("w_k", "k_proj"), ("w_v", "v_proj")):
            assert mixed.get(f"blocks.{layer}.attn.{ours}").equal(
                theirs["base"][f"model.layers.{layer}.self_attn.{name}.weight"]
            )
    assert mixed.get("embed.weight").equal(theirs["base"]["model.embed_tokens.weight"])
    step0 = json.loads((folder / "mix.json").read_text())["receipt"]["step0"]
    assert all(layer["ffn_accuracy"] is not None for layer in step0["layers"])  # of routers that saw the prompts
