"""The self-contained files of an export compute what our modules do: logits, gradients, caches, padding, generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import EXACT, Agreement

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, RopeScaling, SharedExperts
from bam_core.nn.generate import generate
from bam_core.nn.losses import load_balancing_loss, router_z_loss
from tests.export_kit import BAM, BTX, DENSE, EXPERTS, FFN, ROUTED, TOP_1, code_cache, exported, our_logits, some_tokens

__all__ = ["code_cache"]

LLAMA3 = RopeScaling("llama3", 4.0, 1.0, 4.0, 32)
LAYER = {"norm": "layer", "norm_bias": True}
BIASES = {"qkv_bias": True, "o_bias": True, "ffn_bias": True, "norm_bias": True}


def attention(**changes: object) -> ModelConfig:
    return replace(BAM, attention=AttentionExperts(3, 3, **changes))  # type: ignore[arg-type]


def ffn(**changes: object) -> ModelConfig:
    experts: dict[str, object] = {"n_experts": 3, "top_k": 2} | changes
    return replace(BAM, ffn=FFNExperts(**experts))  # type: ignore[arg-type]


CASES: dict[str, ModelConfig] = {
    "dense": DENSE,
    "dense, untied": replace(DENSE, tie_embeddings=False, residual="sequential"),
    "soft attention": BAM,
    "top-1 FFN": TOP_1,
    "BTX": BTX,
    "shared keys, top-2, interleaved, partial": replace(
        BAM,
        attention=AttentionExperts(3, 2, "shared", gate="topk_softmax"),
        rotary_pairs="interleaved",
        rotary_frac=0.5,
        qk_norm=True,
    ),
    "value only, sequential": replace(attention(kv="value_only"), residual="sequential", norm="layer"),
    "threshold": attention(threshold=0.3),
    "repeated slots": replace(
        BAM,
        attention=AttentionExperts(2, 2, slots=("law", "law")),
        ffn=FFNExperts(4, 2, slots=("law", "general", "law", "code")),
    ),
    "placed by layer": replace(
        BAM,
        attention=AttentionExperts(3, 3, layers=(1,)),
        ffn=FFNExperts(3, 1, layers=(0,)),
    ),
    "soft layer, split, shared expert": ffn(n_experts=6, split=2, soft_layers=(0,), shared_expert=True),
    "gains and biases of routers": replace(
        ffn(gain=(1.5, 0.75), router_bias=True, balance="bias", gate="softmax_topk_renorm"),
        attention=AttentionExperts(3, 3, router_bias=True),
    ),
    "sampled": ffn(top_k=1, gate="sample_top1"),
    "straight through": ffn(gate="softmax_topk_ste"),
    "dense router gradient": replace(
        ffn(dense_router_gradient=True),
        attention=AttentionExperts(3, 2, dense_router_gradient=True),
    ),
    "capacity": ffn(capacity_factor=0.5),
    "routers read the text": replace(BAM, router_input="text", embed_scale=3.0),
    "routers read the text, routed": replace(ROUTED, router_input="text", residual="sequential", window=4),
    "routed": ROUTED,
    "routed, soft head, untied": replace(ROUTED, shared=SharedExperts(head="soft"), tie_embeddings=False, **LAYER),
    "routed norms alone": replace(ROUTED, shared=SharedExperts(embed="merged", head="merged"), residual="sequential"),
    "routed head alone": replace(ROUTED, shared=SharedExperts("merged", "merged", temperature=0.5)),
    "biases, GELU, wide heads": replace(BAM, **BIASES, activation="gelu", d_head=12, attention_scale=0.2),
    "no gate, two norms": replace(BAM, **LAYER, ffn_bias=True, gated=False, activation="gelu_tanh", parallel_norms=2),
    "norms after, QK over all": replace(
        BAM, residual="sequential", norms="after", qk_norm=True, qk_norm_over="all", rotary_pairs="interleaved"
    ),
    "norms around, soft caps, scales": replace(
        BAM,
        residual="sequential",
        norms="around",
        attention_softcap=2.0,
        logit_softcap=5.0,
        window=4,
        global_layers=(1,),
        embed_scale=5.0,
        logit_scale=0.5,
    ),
    "window, some global, some unrotated": replace(BAM, window=4, global_layers=(1,), unrotated_layers=(1,)),
    "window, routed": replace(ROUTED, window=4),
    "stretched": replace(attention(kv="shared"), rope_scaling=LLAMA3),
    "head bias": replace(DENSE, tie_embeddings=False, head_bias=True, rope_scaling=RopeScaling("linear", 2.0)),
}


@pytest.mark.oracle("export: logits and gradients")
@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_cache_and_padding(name: str, tmp_path: Path, agree: Agreement):
    config = CASES[name]
    ours, theirs, found = exported(tmp_path, config, to="bam")
    assert found.n_ours == len(ours.state_dict())
    tokens = some_tokens(config)
    expected = our_logits(ours, tokens)
    with torch.no_grad():
        agree(theirs(tokens).logits, expected, EXACT, "logits")
        agree(theirs(tokens, logits_to_keep=3).logits, expected[:, -3:], EXACT, "the last logits")
        past, parts = None, []
        for part in tokens.split((5, 1, 1, 6), 1):  # a prompt, two tokens, and several at once
            step = theirs(part, past_key_values=past, use_cache=True)
            past, parts = step.past_key_values, [*parts, step.logits]
        agree(torch.cat(parts, 1), expected, EXACT, "logits with a cache")
        pads = [4, 0]
        mask = torch.ones_like(tokens)
        mask[0, :4] = 0
        padded = theirs(tokens, attention_mask=mask).logits
    agree(padded[0, 4:], our_logits(ours, tokens, pads)[0, 4:], EXACT, "logits after padding")
    agree(padded[0, 4:], our_logits(ours, tokens[:1, 4:])[0], EXACT, "a padded row is what it is alone")
    _compare_gradients(ours, theirs, tokens, agree)


def _compare_gradients(ours, theirs, tokens, agree: Agreement) -> None:
    """Of a sum of logits, by embeddings (each is behind all else) and by the last norm; in training mode where no noise
    is drawn."""
    training = not (ours.config.ffn is not None and ours.config.ffn.gate == "sample_top1")
    ours.train(training), theirs.train(training)
    weights = torch.randn(ours.config.vocab_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output = ours(tokens)
    (ours.logits(output.hidden_BTD, output.mix_BTE) @ weights).sum().backward()
    (theirs(tokens, use_cache=False).logits @ weights).sum().backward()
    agree(theirs.model.embed_tokens.weight.grad, ours.embed.weight.grad, 100 * EXACT, "d embedding")
    agree(theirs.model.norm.weight.grad, ours.norm.weight.grad, 100 * EXACT, "d norm")
    for ours_block, theirs_block in zip(ours.blocks, theirs.model.layers, strict=True):
        for branch, module in (("attn", theirs_block.self_attn), ("ffn", theirs_block.mlp)):
            router = getattr(getattr(ours_block, branch), "router", None)
            if router is not None and router.grad is not None:
                agree(module.router.weight.grad, router.grad, 100 * EXACT, "d router")


GENERATING = {
    "bam": BAM,
    "routed": ROUTED,
    "window": CASES["window, routed"],
    "text": CASES["routers read the text"],
}


@pytest.mark.parametrize("config", GENERATING.values(), ids=GENERATING.keys())
def test_generates_what_we_generate(config: ModelConfig, tmp_path: Path):
    """Several prompts at once, padded on the left; with a cache, without, and by beams."""
    ours, theirs, _ = exported(tmp_path, config, to="bam")
    rows = [some_tokens(config, 1, n, seed=n)[0] for n in (9, 4, 6)]
    padded = torch.stack([torch.nn.functional.pad(row, (9 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (9 - len(row), 0)) for row in rows])
    expected = torch.tensor(generate(ours, rows, 7))
    how = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    assert theirs.generate(padded, **how)[:, 9:].equal(expected)
    assert theirs.generate(padded, use_cache=False, **how)[:, 9:].equal(expected)
    beams = theirs.generate(padded, num_beams=3, **how)
    assert theirs.generate(padded, num_beams=3, use_cache=False, **how).equal(beams)
    alone = theirs.generate(rows[1].unsqueeze(0), num_beams=3, **how | {"attention_mask": None})
    assert beams[1, 9:].equal(alone[0, 4:])


def test_attention_implementations_agree(tmp_path: Path, agree: Agreement):
    """`eager` gives probabilities, of each expert's heads: they sum to 1."""
    config = replace(BAM, attention=AttentionExperts(3, 3, "value_only"), window=4, global_layers=(1,))
    ours, theirs, _ = exported(tmp_path, config, to="bam")
    tokens, mask = some_tokens(config), torch.ones(2, 13, dtype=torch.long)
    mask[0, :4] = 0
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        asked = {"output_attentions": True, "output_hidden_states": True, "output_router_logits": True}
        found = theirs(tokens, attention_mask=mask, **asked)
    agree(found.logits[1], our_logits(ours, tokens)[1], EXACT, "eager logits")
    agree(found.logits[0, 4:], our_logits(ours, tokens[:1, 4:])[0], EXACT, "eager logits after padding")
    assert [list(probs.shape) for probs in found.attentions] == [[2, 4, 13, 13]] * 2
    agree(found.attentions[1].sum(-1), torch.ones(2, 4, 13), EXACT, "probabilities")
    assert len(found.hidden_states) == config.n_layers + 1
    assert [list(logits.shape) for logits in found.router_logits] == [[26, 3]] * 2


@pytest.mark.oracle("export: router losses")
@pytest.mark.parametrize("name", ["soft attention", "soft layer, split, shared expert", "gains and biases of routers"])
def test_router_losses_are_ours(name: str, tmp_path: Path, agree: Agreement):
    """With padding: over the tokens that are there. The loss has them in training alone."""
    config = CASES[name]
    ours, theirs, _ = exported(tmp_path, config, to="bam")
    tokens, mask = some_tokens(config), torch.ones(2, 13, dtype=torch.long)
    mask[1, 9:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    found = theirs.train()(tokens, attention_mask=mask, labels=labels)
    routing = [layer.ffn for layer in ours.train()(tokens).routing if layer.ffn is not None]
    balance, z = load_balancing_loss(routing, mask_N=mask), router_z_loss(routing, mask_N=mask)
    agree(found.aux_loss, 0.01 * balance + 0.001 * z, EXACT, "router losses")
    judged = theirs.eval()(tokens, attention_mask=mask, labels=labels)
    assert judged.aux_loss is None
    agree(found.loss - judged.loss, found.aux_loss, 1e-6, "their part in the loss, whose logits are in float32")


def test_accumulated_batches_weigh_router_losses_as_one(tmp_path: Path, agree: Agreement):
    """A trainer gives the number of targets of all parts: their losses sum to that of the whole."""
    _, theirs, _ = exported(tmp_path, replace(BAM, ffn=FFN), to="bam")
    theirs.config.load_balancing_coef = 0.0  # its fractions are those of a part
    theirs.config.z_loss_coef, tokens = 1.0, some_tokens(BAM, 4)
    whole = theirs.train()(tokens, labels=tokens).loss
    parts = [theirs(part, labels=part, num_items_in_batch=torch.tensor(48)).loss for part in tokens.split((1, 3))]
    agree(torch.stack(parts).sum(), whole, 1e-6, "loss of the parts, whose logits are in float32")


def test_checkpointed_gradients_are_the_same(tmp_path: Path, agree: Agreement):
    """Router losses too, and with either kind of checkpointing."""
    _, theirs, _ = exported(tmp_path, CASES["biases, GELU, wide heads"], to="bam")
    tokens = some_tokens(BAM)

    def gradients() -> dict[str, torch.Tensor]:
        theirs.zero_grad()
        theirs.train()(tokens, labels=tokens, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}

    expected = gradients()
    for reentrant in (False, True):
        theirs.activation_checkpointing_enable({"use_reentrant": reentrant})
        for name, found in gradients().items():
            agree(found, expected[name], EXACT, name)
    assert {"model.layers.0.mlp.router.weight", "model.layers.1.self_attn.router.weight"} <= expected.keys()


def test_what_samples_learns(tmp_path: Path):
    """`sample_top1` draws in training, so its router has a gradient, and does not in evaluation."""
    config = replace(BAM, ffn=FFNExperts(3, 1, gate="sample_top1"), attention=None, experts=EXPERTS)
    _, theirs, _ = exported(tmp_path, config, to="bam")
    tokens, (weights,) = some_tokens(config), [theirs.model.layers[0].mlp.router.weight]
    with torch.no_grad():
        assert theirs(tokens).logits.equal(theirs(tokens).logits)
    theirs.config.load_balancing_coef = theirs.config.z_loss_coef = 0.0
    torch.manual_seed(0)
    theirs.train()(tokens, labels=tokens).loss.backward()
    assert weights.grad.abs().max() > 0
