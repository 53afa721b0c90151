"""Plug-ins are found by name, loaded when used, and what is wrong with one is said with its distribution's name."""

from __future__ import annotations

import sys
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bam_core import plugins
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import BamError, InvalidInput, UsageError
from bam_core.evaluate.metric import metric
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.routing import GATES, gate, route
from bam_core.plugins import MERGE_RULES, METRICS, ROUTING_RULES, SOURCES, VARIANTS
from bam_core.upcycle.merge import MERGES, merge_rule
from bam_core.upcycle.models import upcycle_models
from bam_core.upcycle.presets import named_variant
from bam_core.upcycle.specs import AttentionSpec, FFNSpec, MergeSpec
from bam_core.upcycle.variants import VARIANTS as OURS
from bam_core.upcycle.variants import Variant
from tests.plugin_kit import Visible, install, visible

__all__ = ["visible"]

SOUND = """
from bam_core.nn.routing import Routing, softmax_topk

def gate(logits_NE, top_k, balance_E=None):
    return softmax_topk(logits_NE, top_k, balance_E)

def best_first(logits_NE, top_k, balance_E=None):
    probs_NE = logits_NE.softmax(-1)
    weights_NK, experts_NK = probs_NE.topk(top_k, -1)
    return Routing(weights_NK, experts_NK, probs_NE, logits_NE)

def first(parts, spec, generator):
    assert 0 < spec.density <= 1 and generator.get_state().numel()
    return next(iter(parts))[1].float()

WIDE = {"attention": "merged", "ffn": {"top_k": 2, "split": 2}, "merge": "seed"}

def loud(judged):
    return 1.0
"""
ENTRIES = {
    ROUTING_RULES: {"acme.same": "acme_sound:gate", "acme.best": "acme_sound:best_first"},
    MERGE_RULES: {"acme.first": "acme_sound:first"},
    VARIANTS: {"acme.wide": "acme_sound:WIDE"},
    METRICS: {"acme.loud": "acme_sound:loud"},
}


@pytest.fixture
def acme(tmp_path: Path, visible: Visible) -> None:
    visible(install(tmp_path, "bam-acme", "0.3", ENTRIES, {"acme_sound": SOUND}))


def test_what_is_installed_is_listed_and_not_imported(acme: None) -> None:
    found = [str(plugin) for plugin in plugins.installed()]
    assert found == [
        "routing rule acme.best of bam-acme 0.3",
        "routing rule acme.same of bam-acme 0.3",
        "merge rule acme.first of bam-acme 0.3",
        "variant acme.wide of bam-acme 0.3",
        "metric acme.loud of bam-acme 0.3",
    ]
    assert not any(plugin.fault for plugin in plugins.installed())
    FFNExperts(3, gate="acme.same")  # checked by name
    assert not list(AttentionExperts(3, 2, gate="acme.same").problems())
    assert "acme_sound" not in sys.modules
    assert gate("acme.same") is sys.modules["acme_sound"].gate


def test_a_name_of_ours_never_asks_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: pytest.fail("asked"))
    plugins.forget()
    assert not list(FFNExperts(3).problems())
    assert all(gate(name) is GATES[name] for name in GATES)
    assert all(merge_rule(name) is MERGES[name] for name in MERGES)
    assert not any(plugins.is_plugin_name(name) for name in (*GATES, *MERGES, *OURS, "jsonl", "python-docs"))


def test_a_rule_that_is_ours_under_another_name_makes_the_same(acme: None) -> None:
    config = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=8, max_seq_len=8)
    models = {}
    for seed, name in enumerate(("general", "law")):
        models[name] = LM(config)
        init_weights(models[name], seed)
    own = Variant("own", "merged", FFNSpec(scale="gate"), merge=MergeSpec("seed"))
    plugged = replace(own, ffn=FFNSpec(scale="gate", gate="acme.same"), merge=MergeSpec("acme.first"))
    rows = {name: torch.arange(18).reshape(2, 9) % 11 for name in models}
    made, other = (upcycle_models(models, variant, rows=rows) for variant in (own, plugged))
    assert made.model.config.ffn is not None
    assert made.model.config.ffn.gain  # the sum of the gates is measured for a plug-in too, not taken for 1
    assert other.model.config == replace(made.model.config, ffn=replace(made.model.config.ffn, gate="acme.same"))
    assert all(torch.equal(tensor, other.model.state_dict()[name]) for name, tensor in made.model.state_dict().items())
    tokens = torch.arange(8)[None] % 11
    assert torch.equal(made.model(tokens).hidden_BTD, other.model(tokens).hidden_BTD)
    assert other.receipt()["experts"]["law"]["max_abs_diff"] < 1e-12


def test_a_plug_in_is_not_asked_for_all_experts(acme: None) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert route(logits, AttentionExperts(3, 2, gate="acme.best")).experts_NK.tolist() == [[2, 1]]
    routing = route(logits, AttentionExperts(3, 3, gate="acme.best"))
    assert routing.experts_NK.tolist() == [[0, 1, 2]]
    assert torch.equal(routing.weights_NK, logits.softmax(-1))


def test_a_variant_by_name(acme: None) -> None:
    assert named_variant("acme.wide") == Variant(
        "acme.wide", "merged", FFNSpec(top_k=2, split=2), merge=MergeSpec("seed")
    )
    assert named_variant("btx") is OURS["btx"]
    with pytest.raises(UsageError, match="no variant 'bmt'"):
        named_variant("bmt")


@pytest.mark.parametrize(
    ("group", "name", "source", "words"),
    [
        (ROUTING_RULES, "no_such.thing", None, "cannot be loaded: ModuleNotFoundError: No module named 'acme_"),
        (ROUTING_RULES, "acme.x", "1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        (ROUTING_RULES, "acme.x", "y = 1", "cannot be loaded: AttributeError: "),
        (ROUTING_RULES, "acme.x", "x = 3", "must be a function (logits_NE, top_k, balance_E=None) -> Routing, not 3"),
        (ROUTING_RULES, "acme.x", "x = lambda a: a", "is not what it must be: TypeError: "),
        (
            ROUTING_RULES,
            "acme.x",
            "x = lambda l, k, b=None: l",
            "must return a bam_core.nn.routing.Routing, not a Tensor",
        ),
        (MERGE_RULES, "acme.x", "x = 3", "must be a function (parts, spec, generator) -> Tensor, not 3"),
        (MERGE_RULES, "acme.x", "x = lambda p, s, g: next(p)[1].double()", "must return a float32 tensor"),
        (
            MERGE_RULES,
            "acme.x",
            "x = lambda p, s, g: sum(t for _, t in p)",
            "of equal tensors it must make that tensor",
        ),
        (MERGE_RULES, "acme.x", "x = lambda p, s, g: next(p)[1] + 0.5", "of equal tensors it must make that tensor"),
        (VARIANTS, "acme.x", "x = 3", "must be a mapping of the keys of a variant, not int"),
        (VARIANTS, "acme.x", "x = {'atention': 'merged', 'ffn': 'merged'}", "2 problems"),
        (METRICS, "acme.x", "x = 3", "must be a function (Judged) -> float, not 3"),
    ],
)
def test_a_broken_one_is_refused(
    tmp_path: Path, visible: Visible, group: str, name: str, source: str | None, words: str
) -> None:
    module = f"acme_{tmp_path.name.replace('-', '_')}"
    files = {module: source} if source is not None else {}
    visible(install(tmp_path, "bam-acme", "1.0", {group: {name: f"{module}:x"}}, files))
    load = {ROUTING_RULES: gate, MERGE_RULES: merge_rule, VARIANTS: named_variant, METRICS: metric}[group]
    for _ in range(2):  # what failed once is not kept
        with pytest.raises(UsageError) as caught:
            load(name)
    assert words in str(caught.value)
    assert f"{plugins.GROUPS[group]} {name} of bam-acme 1.0" in str(caught.value)
    assert "it is for bam-acme to mend" in str(caught.value)


RULE = """
import torch
from bam_core.nn.routing import Routing, softmax_topk

def x(logits, top_k, balance=None):
    found = softmax_topk(logits, top_k, balance)
    {change}
    return Routing(found.weights_NK, found.experts_NK, found.probs_NE, logits)
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("object.__setattr__(found, 'weights_NK', found.weights_NK[..., :1])", "of logits [2, 4] with top_k 2"),
        ("object.__setattr__(found, 'experts_NK', found.experts_NK.int())", "must be int64"),
        ("object.__setattr__(found, 'experts_NK', found.experts_NK + 4)", "must be int64 numbers of experts"),
        ("found.experts_NK[found.experts_NK == 2] = 4", "must be int64 numbers of experts"),
        ("object.__setattr__(found, 'experts_NK', 0 * found.experts_NK)", "must name each expert once"),
        ("object.__setattr__(found, 'weights_NK', found.weights_NK / 0)", "must be finite"),
        ("object.__setattr__(found, 'weights_NK', found.weights_NK.half())", "in the dtype of the logits"),
        ("object.__setattr__(found, 'weights_NK', found.weights_NK.float())", "in the dtype of the logits"),
        ("found = softmax_topk(logits, max(2, top_k))", "of logits [2, 4] with top_k 1"),
        ("found = found if balance is None else softmax_topk(logits, 3)", "of logits [2, 4] with top_k 2"),
        ("object.__setattr__(found, 'probs_NE', 2 * found.probs_NE)", "must sum to 1"),
        ("object.__setattr__(found, 'weights_NK', found.weights_NK / 2)", "with weight 1"),
    ],
)
def test_a_routing_rule_that_the_model_could_not_rely_on(
    tmp_path: Path, visible: Visible, change: str, words: str
) -> None:
    module = f"acme_{tmp_path.name.replace('-', '_')}"
    entries = {ROUTING_RULES: {"acme.x": f"{module}:x"}}
    visible(install(tmp_path, "bam-acme", "1.0", entries, {module: RULE.format(change=change)}))
    with pytest.raises(UsageError, match=r"routing rule acme.x of bam-acme 1.0 is not what it must be") as caught:
        gate("acme.x")
    assert words in str(caught.value)


def test_a_merge_of_different_models_may_be_none_of_them(tmp_path: Path, visible: Visible) -> None:
    module = f"acme_{tmp_path.name.replace('-', '_')}"
    source = """
def x(parts, spec, generator):
    tensors = [tensor for _, tensor in parts]
    return sum(tensors) / len(tensors)
"""
    visible(install(tmp_path, "bam-acme", "1.0", {MERGE_RULES: {"acme.x": f"{module}:x"}}, {module: source}))
    assert merge_rule("acme.x") is sys.modules[module].x


def test_a_rule_may_want_to_be_told_the_balance(tmp_path: Path, visible: Visible) -> None:
    module = f"acme_{tmp_path.name.replace('-', '_')}"
    source = RULE.format(change="").replace("balance=None", "balance")
    visible(install(tmp_path, "bam-acme", "1.0", {ROUTING_RULES: {"acme.x": f"{module}:x"}}, {module: source}))
    assert gate("acme.x") is sys.modules[module].x


def test_one_that_is_not_installed(acme: None) -> None:
    [problem] = FFNExperts(3, gate="acme.sane").problems()
    assert problem.path == "gate"
    assert "no installed distribution has it" in problem.expected
    assert problem.remedy == "did you mean 'acme.same'?"
    [problem] = FFNExperts(3, gate="corp.other").problems()
    assert problem.remedy == "installed: acme.best (bam-acme 0.3), acme.same (bam-acme 0.3)"
    with pytest.raises(InvalidInput, match=r"merge.method: 'acme.same': is a plug-in's merge rule"):
        Variant.from_json({"name": "x", "attention": "merged", "ffn": "merged", "merge": "acme.same"})
    with pytest.raises(UsageError, match=r"'acme.gone' is a plug-in's metric"):
        metric("acme.gone")


def test_one_that_is_installed_while_the_process_runs(acme: None, tmp_path: Path) -> None:
    assert list(FFNExperts(3, gate="later.rule").problems())
    install(tmp_path, "bam-later", "1.0", {ROUTING_RULES: {"later.rule": "acme_sound:gate"}})
    assert not list(FFNExperts(3, gate="later.rule").problems())


def test_two_distributions_with_one_name(tmp_path: Path, visible: Visible) -> None:
    entries = {ROUTING_RULES: {"acme.same": "acme_sound:gate"}}
    visible(install(tmp_path / "one", "bam-acme", "0.3", entries, {"acme_sound": SOUND}))
    visible(install(tmp_path / "two", "bam-apex", "2.0", entries))
    with pytest.raises(UsageError, match=r"bam-acme 0.3 and bam-apex 2.0 both have it: uninstall one of them"):
        gate("acme.same")
    assert [plugin.distribution for plugin in plugins.installed() if plugin.fault] == ["bam-acme", "bam-apex"]


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("softmax_topk", "1.0", "bam-acme 1.0 names it without a point, as only ours are named"),
        ("Acme.Sharp", "1.0", "must be called as `acme.acme_sharp`"),
        ("acme.same", None, "the metadata of its distribution is damaged"),
    ],
)
def test_a_declaration_that_cannot_be_meant(
    tmp_path: Path, visible: Visible, name: str, version: str | None, words: str
) -> None:
    visible(install(tmp_path, "bam-acme", version, {ROUTING_RULES: {name: "acme_sound:gate"}}))
    [plugin] = plugins.installed()
    assert words in plugin.fault
    assert gate("softmax_topk") is GATES["softmax_topk"]  # ours, whatever others declare


def test_metadata_that_raises_where_a_key_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backport of importlib.metadata, which libraries import, then reads for the standard library as well."""

    class Read(Message):
        def __getitem__(self, name: str) -> str:
            raise KeyError(name)

    entry = SimpleNamespace(name="acme.same", dist=SimpleNamespace(metadata=Read()))
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: [entry])
    plugins.forget()
    assert {plugin.fault for plugin in plugins.installed()} == {
        "the metadata of its distribution is damaged: install it again"
    }
    plugins.forget()


def test_another_version_than_was_planned_with(acme: None) -> None:
    used = plugins.identity(iter([plugins.find(ROUTING_RULES, "acme.same")]))
    assert used == {ROUTING_RULES: {"acme.same": {"distribution": "bam-acme", "version": "0.3"}}}
    plugins.require_same(used)
    used[ROUTING_RULES]["acme.same"]["version"] = "0.2"
    with pytest.raises(BamError, match=r"acme.same: planned with bam-acme 0.2, and here is bam-acme 0.3"):
        plugins.require_same(used)
    with pytest.raises(UsageError, match="no installed distribution has it"):
        plugins.require_same({SOURCES: {"acme.wiki": {"distribution": "bam-acme", "version": "0.3"}}})


def test_attention_by_a_plug_in_decodes_as_it_runs(acme: None) -> None:
    """The form for inference asks the same rule."""
    from bam_core.nn.generate import generate

    config = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=8, max_seq_len=8)
    models = {}
    for seed, name in enumerate(("general", "law", "code")):
        models[name] = LM(config)
        init_weights(models[name], seed)
    attention = AttentionSpec(routing="top_k", top_k=2, gate="acme.same")
    plugged = upcycle_models(models, Variant("x", attention, FFNSpec(gate="acme.same"))).model
    own = upcycle_models(models, Variant("x", replace(attention, gate="softmax_topk"), FFNSpec())).model
    prompt = torch.tensor([1, 2])
    assert generate(plugged, prompt, 6) == generate(own, prompt, 6)
