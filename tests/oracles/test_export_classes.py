"""What is exported to a class of transformers is that class's model: logits, names, and why not where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import EXACT, Agreement

from bam_core.checkpoint import load_model, open_tensors, read_config, write_model
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, RopeScaling, SharedExperts
from bam_core.errors import InvalidInput, UsageError
from bam_core.hf import to_bam
from bam_core.hf.export import export_model
from bam_core.hf.targets import choose
from tests.export_kit import (
    BAM,
    BTX,
    DENSE,
    EXPERTS,
    code_cache,
    exported,
    opened,
    our_logits,
    random_tensors,
    some_tokens,
    write_random,
)

__all__ = ["code_cache"]

IN_FLOAT32 = 1e-5
"""Those classes norm, rotate and route in float32, whatever the weights are in."""

SEQUENTIAL = replace(BTX, residual="sequential")
OLMOE = replace(SEQUENTIAL, qk_norm=True, qk_norm_over="all")
PLAIN_GATE = FFNExperts(3, 2)
"""softmax over all, not renormalised."""
ONE_SCALE = replace(SEQUENTIAL, qk_norm=True, ffn=FFNExperts(3, 2, layers=(1,)), tie_embeddings=False)

CASES: dict[str, tuple[str, ModelConfig]] = {
    "BTX, parallel, RMS": ("cohere2_moe", BTX),
    "BTX, parallel, layer norm, biases, untied": (
        "cohere2_moe",
        replace(BTX, norm="layer", tie_embeddings=False, qkv_bias=True, o_bias=True, logit_scale=0.25, d_head=12),
    ),
    "split, shared expert, some layers": (
        "cohere2_moe",
        replace(BTX, ffn=FFNExperts(6, 3, gate="softmax_topk_renorm", split=2, shared_expert=True, layers=(1,))),
    ),
    "top-1 of what sampled, soft": ("cohere2_moe", replace(BTX, ffn=FFNExperts(3, 1, gate="sample_top1"))),
    "windows and layers that do not rotate": (
        "cohere2_moe",
        replace(BTX, window=4, global_layers=(0,), unrotated_layers=(0,)),
    ),
    "interleaved": ("cohere2_moe", replace(BTX, rotary_pairs="interleaved", rope_theta=500.0)),
    "dense, parallel": ("cohere2_moe", DENSE),
    "BTX, sequential": ("mixtral", SEQUENTIAL),
    "BTX, sequential, gains, stretched": (
        "mixtral",
        replace(
            SEQUENTIAL,
            ffn=replace(BTX.ffn, gain=(1.7, 0.5)),
            rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 32),
            rotary_pairs="interleaved",
            tie_embeddings=False,
        ),
    ),
    "all experts, window": ("mixtral", replace(SEQUENTIAL, ffn=FFNExperts(3, 3), window=4)),
    "OLMoE, BAM's gate": ("olmoe", replace(OLMOE, ffn=PLAIN_GATE)),
    "OLMoE, BTX's gate, biases": ("olmoe", replace(OLMOE, qkv_bias=True, o_bias=True)),
    "FlexOlmo": ("flex_olmo", replace(OLMOE, norms="after", ffn=PLAIN_GATE, tie_embeddings=False)),
    "Llama": ("llama", replace(DENSE, residual="sequential", tie_embeddings=False)),
    "Cohere": ("cohere", replace(DENSE, norm="layer", rotary_pairs="interleaved", logit_scale=0.25)),
    "Qwen2": ("qwen2", replace(DENSE, residual="sequential", qkv_bias=True)),
}


@pytest.mark.oracle("export to a class")
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_class(name: str, tmp_path: Path, agree: Agreement):
    """`auto` finds the class, and every one of its tensors is there and no other."""
    to, config = CASES[name]
    ours, theirs, found = exported(tmp_path, config)
    assert (found.target.name, type(theirs).__name__) == (to, found.target.architecture)
    assert not found.target.has_code
    tokens = some_tokens(config)
    expected = our_logits(ours, tokens)
    with torch.no_grad():
        agree(theirs(tokens).logits, expected, IN_FLOAT32, "logits")
        start = theirs(tokens[:, :9], use_cache=True)
        rest = theirs(tokens[:, 9:], past_key_values=start.past_key_values)
    agree(torch.cat((start.logits, rest.logits), 1), expected, IN_FLOAT32, "logits with a cache")


def test_gains_are_folded_to_the_last_digit(tmp_path: Path, agree: Agreement):
    """In float64 the fold is algebra; what differs above is the class's float32."""
    config = CASES["BTX, sequential, gains, stretched"][1]
    _, theirs, _ = exported(tmp_path, config)
    source = open_tensors(tmp_path / "source")
    for layer, gain in enumerate((1.7, 0.5)):
        folded = theirs.model.layers[layer].mlp.experts.down_proj
        agree(folded, gain * source.get(f"blocks.{layer}.ffn.w_down").mT, EXACT, "w_down")


def test_heads_that_share_a_scale_have_a_class(tmp_path: Path, agree: Agreement):
    """Qwen3-MoE has one scale for all heads: a model just imported from such a family fits, a trained one does not."""
    heads = {"q_norm": 4, "k_norm": 2}
    tensors = {
        name: tensor[:8].repeat(heads[leaf]) if (leaf := name.rsplit(".", 1)[-1]) in heads else tensor
        for name, tensor in random_tensors(ONE_SCALE)
    }
    write_model(tmp_path / "source", ONE_SCALE, tensors.items(), tokenizer=None, card=None)
    found = export_model(tmp_path / "source", tmp_path / "export")
    assert found.target.name == "qwen3_moe"
    tokens = some_tokens(ONE_SCALE)
    with torch.no_grad():
        theirs = opened(tmp_path / "export")(tokens).logits
    agree(theirs, our_logits(load_model(tmp_path / "source"), tokens), IN_FLOAT32)
    apart = write_random(tmp_path / "apart", ONE_SCALE)
    with pytest.raises(InvalidInput, match=r"blocks.0.attn.q_norm: '4 scales': must be the same for all 4 heads"):
        export_model(apart, tmp_path / "refused", to="qwen3_moe")
    assert not (tmp_path / "refused").exists()
    assert export_model(apart, tmp_path / "other").target.name == "bam"


def test_biases_that_ended_at_zero_are_left_out(tmp_path: Path, agree: Agreement):
    """An expert that was added starts with a bias that training takes to 0; then the class has all there is."""
    config = replace(SEQUENTIAL, ffn=replace(BTX.ffn, router_bias=True))
    tensors = {name: tensor * (not name.endswith("bias")) for name, tensor in random_tensors(config)}
    write_model(tmp_path / "source", config, tensors.items(), tokenizer=None, card=None)
    found = export_model(tmp_path / "source", tmp_path / "export")
    assert found.target.name == "mixtral"
    report = json.loads((tmp_path / "export" / "export.json").read_text())
    assert list(report["left_out"]) == [f"blocks.{layer}.ffn.router_bias" for layer in range(2)]
    heard = write_random(tmp_path / "heard", config)
    with pytest.raises(InvalidInput, match=r"ffn.router_bias: .*must be zero"):
        export_model(heard, tmp_path / "refused", to="mixtral")


REFUSED: dict[str, tuple[str, ModelConfig, str]] = {
    "attention experts": ("mixtral", replace(BAM, residual="sequential"), "attention: '3 experts'"),
    "BAM's gate": ("mixtral", replace(SEQUENTIAL, ffn=PLAIN_GATE), "ffn.gate: 'softmax_topk'"),
    "routed": ("cohere2_moe", replace(BTX, shared=SharedExperts()), "shared: 'routed'"),
    "routers of the text": ("cohere2_moe", replace(BTX, router_input="text"), "router_input: 'text'"),
    "wiring": ("mixtral", BTX, "residual: 'parallel'"),
    "norm": ("mixtral", replace(SEQUENTIAL, norm="layer"), "norm: 'layer'"),
    "activation": ("cohere2_moe", replace(BTX, activation="gelu"), "activation: 'gelu'"),
    "soft layer": ("mixtral", replace(SEQUENTIAL, ffn=replace(BTX.ffn, soft_layers=(0,))), r"ffn.soft_layers: \[0\]"),
    "layers": ("mixtral", replace(SEQUENTIAL, ffn=replace(BTX.ffn, layers=(0,))), r"ffn.layers: \[0\]"),
    "shared expert": ("olmoe", replace(OLMOE, ffn=replace(BTX.ffn, shared_expert=True)), "ffn.shared_expert: True"),
    "no QK norm": ("olmoe", SEQUENTIAL, "qk_norm: False"),
    "one window": ("cohere2_moe", replace(BTX, window=4, global_layers=(0,)), r"global_layers: \[0\]"),
    "dense": ("mixtral", replace(DENSE, residual="sequential"), "ffn"),
    "a mixture": ("llama", SEQUENTIAL, "ffn: 'experts'"),
    "one bias": ("olmoe", replace(OLMOE, qkv_bias=True), "o_bias: False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_is_refused_by_field_value_and_reason(name: str, tmp_path: Path):
    to, config, words = REFUSED[name]
    source = write_random(tmp_path / "source", config)
    with pytest.raises(InvalidInput, match=words):
        export_model(source, tmp_path / "export", to=to)
    assert not (tmp_path / "export").exists()
    found = export_model(source, tmp_path / "auto")
    assert found.target.name != to
    assert to not in {"mixtral", "cohere2_moe"} or not found.target.has_code or to in str(found.target.refused)


def test_narrow_routers_are_no_equal_of_ours(tmp_path: Path):
    """In bfloat16 a class's router rounds: `auto` does not call that equal, and who asks for it is told."""
    source = write_random(tmp_path / "source", SEQUENTIAL)
    config, tensors = read_config(source), open_tensors(source)
    found = choose(config, tensors, dtype=torch.bfloat16)
    assert found.has_code
    assert found.refused["mixtral"].path == "dtype"
    asked = choose(config, tensors, "mixtral", torch.bfloat16)
    assert "routers" in asked.notes[0]
    with pytest.raises(UsageError, match=r"no export to 'mixtrall': did you mean 'mixtral'"):
        choose(config, tensors, "mixtrall")


def test_a_plug_in_rule_has_no_code_to_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bam_core.plugins.problems", lambda *_: iter(()))
    config = replace(BAM, attention=AttentionExperts(3, 2, gate="acme.sharp"))  # type: ignore[arg-type]
    source = write_random(tmp_path / "source", config)
    with pytest.raises(InvalidInput, match=r"attention.gate: 'acme.sharp': is a plug-in's"):
        export_model(source, tmp_path / "export")
    assert EXPERTS


def test_what_is_new_is_refused_until_somebody_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A field that the files do not know would be left out in silence: of the model, of its experts."""
    source = write_random(tmp_path / "source", replace(BTX, ffn=FFNExperts(3, 2, gate="topk_softmax", split=1)))
    config, tensors = read_config(source), open_tensors(source)
    monkeypatch.setattr("bam_core.hf.to_bam._AS_THEY_ARE", ("vocab_size",))
    with pytest.raises(InvalidInput, match="d_model: 32: is something that exports do not know yet"):
        choose(config, tensors, "bam")
    monkeypatch.undo()
    monkeypatch.setitem(to_bam._OF_PARTS, "ffn", frozenset({"n_experts", "top_k"}))  # type: ignore[index]
    for to in ("bam", "cohere2_moe"):
        with pytest.raises(InvalidInput, match=r"ffn.gate: 'topk_softmax': is something that exports do not know yet"):
            choose(config, tensors, to)
