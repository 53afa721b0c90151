"""`shared: routed` in a model: exactly one dense model where routers say so, causal, the same with a cache, trained.

That every logit and gradient is that of a plain loop: `tests/oracles/test_naive_composition.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import MIXTURE, PHASE, RandomRows, Worker, fresh, masters

from bam_core.checkpoint import load_model, write_model
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.errors import InvalidInput
from bam_core.nn.attention import Cache
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.routing import normalised_entropy
from bam_core.nn.shapes import tensor_shapes
from bam_core.nn.shared import embed_each, text_so_far
from bam_core.train.loop import Pace, train
from bam_core.train.optim import Optimizer
from bam_core.train.step import accumulate_gradient
from tests.ranks import RankWorker, ranks

NAMES = ("general", "code", "law")
DENSE = ModelConfig(vocab_size=37, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=16)
UNTIED = replace(DENSE, tie_embeddings=False, residual="sequential", norm="layer")
EXACT = {"rtol": 1e-11, "atol": 1e-11}
"""float64 through two layers, with routers whose logits are 1e4."""

PARTS: dict[str, dict[str, Any]] = {
    "all": {},
    "soft head": {"head": "soft"},
    "embedding": {"norms": "merged", "head": "merged"},
    "norms": {"embed": "merged", "head": "merged"},
    "head": {"embed": "merged", "norms": "merged"},
}


def routed(dense: ModelConfig = DENSE, kind: str = "bam", **shared: Any) -> ModelConfig:
    """BAM, or BTX top-3 of 6 as in the paper's comparison at equal FLOPs."""
    slots = ("general", "general", "general", "code", "law", "law")
    attention = AttentionExperts(3, 3, router_bias=True) if kind == "bam" else None
    ffn = FFNExperts(3, router_bias=True) if kind == "bam" else FFNExperts(6, 3, "softmax_topk_renorm", slots=slots)
    return replace(dense, attention=attention, ffn=ffn, experts=NAMES, shared=SharedExperts(**shared)).checked()


def tokens(n_rows: int, n_time: int, vocab: int = 37) -> Tensor:
    return torch.randint(vocab, (n_rows, n_time), generator=torch.Generator().manual_seed(4))


def scattered(config: ModelConfig, seed: int = 0) -> LM:
    """A float64 model away from its start: norms that differ, routers that choose."""
    model = fresh(config, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def logits(model: LM, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
    output = model(tokens_BT, cache)
    return model.logits(output.hidden_BTD, output.mix_BTE)


def mixed(config: ModelConfig, dense: list[LM], merged: LM) -> LM:
    """The mixture by hand: stacked what is stacked, of `merged` what is not; routers are zeros."""
    model = LM(config).double().eval()
    for name, parameter in model.named_parameters():
        source = name if name in dict(merged.named_parameters()) else "embed.weight"  # a head that was tied
        if name.endswith((".router", ".router_bias")):
            parameter.data.zero_()
        elif parameter.shape == merged.get_parameter(source).shape:
            parameter.data.copy_(merged.get_parameter(source))
        else:
            slots = config.ffn.slots if ".ffn." in name and config.ffn else ()
            models = [dense[NAMES.index(slot)] for slot in slots or NAMES]
            parameter.data.copy_(torch.stack([one.get_parameter(source).data for one in models]))
    return model


def send_all_to(model: LM, expert: int, tokens_BT: Tensor) -> None:
    """Every router one-hot: by biases, and by a shared router with the response +-1e4 to each text so far."""
    shared, text_ND = model.shared, text_so_far(embed_each(tokens_BT, model.embed.weight)).flatten(0, 1)
    direction_D = torch.linalg.lstsq(text_ND, torch.ones(len(text_ND), 1, dtype=text_ND.dtype)).solution[:, 0]
    sign_E1 = torch.full((len(NAMES), 1), -1e4, dtype=torch.float64)
    sign_E1[expert] = 1e4
    shared.router.data.copy_(sign_E1 * direction_D)
    for block in model.blocks:
        for branch in (block.attn, block.ffn):
            if getattr(branch, "router_bias", None) is not None:
                branch.router_bias.data.fill_(-1e4)[expert] = 1e4


@pytest.mark.parametrize("expert", range(3))
@pytest.mark.parametrize("dense_config", [DENSE, UNTIED, replace(DENSE, qk_norm=True)], ids=["tied", "untied", "qk"])
@pytest.mark.parametrize("head", ["top1", "soft"])
def test_with_all_routers_at_one_model_the_mixture_is_that_model(
    head: str, dense_config: ModelConfig, expert: int
) -> None:
    """Nothing of the others is left, not in the embedding, not in a norm, not in the head."""
    dense = [scattered(dense_config, seed) for seed in range(3)]
    poison = scattered(dense_config, 99)  # in the place of all that is merged: there must be nothing
    model, tokens_BT = mixed(routed(dense_config, head=head), dense, poison), tokens(1, 12)
    send_all_to(model, expert, tokens_BT)
    assert torch.equal(model(tokens_BT).mix_BTE.argmax(-1), torch.full((1, 12), expert))
    torch.testing.assert_close(logits(model, tokens_BT), logits(dense[expert], tokens_BT), **EXACT)
    other = (expert + 1) % 3
    assert (logits(model, tokens_BT) - logits(dense[other], tokens_BT)).abs().max() > 0.1


@pytest.mark.parametrize("part", PARTS)
def test_what_is_merged_stays_merged(part: str) -> None:
    """With every other part of one model: an embedding, a norm and a head that are merged are those of `merged`."""
    dense, merged = [scattered(DENSE, seed) for seed in range(3)], scattered(DENSE, 99)
    config, tokens_BT = routed(**PARTS[part]), tokens(1, 12)
    model = mixed(config, dense, merged)
    send_all_to(model, 2, tokens_BT)
    expected = LM(replace(DENSE, tie_embeddings=False)).double().eval()
    law = dict(dense[2].state_dict())
    law["head.weight"] = dense[2].embed.weight.data
    for name in law:
        which = "head" if name == "head.weight" else "embed" if name == "embed.weight" else "norms"
        if (which != "norms" or name.endswith("norm.weight")) and not config.is_routed(which):
            law[name] = merged.state_dict()["embed.weight" if which == "head" else name]
    expected.load_state_dict(law)
    torch.testing.assert_close(logits(model, tokens_BT), logits(expected, tokens_BT), **EXACT)


def test_btx_of_copies_is_the_dense_model_whatever_the_routers() -> None:
    """Every model the same: any mix of equal parts is that part."""
    dense = scattered(DENSE)
    model, tokens_BT = mixed(routed(kind="btx"), [dense] * 3, dense), tokens(3, 12)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".router"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    torch.testing.assert_close(logits(model, tokens_BT), logits(dense, tokens_BT), **EXACT)


@pytest.mark.parametrize("kind", ["bam", "btx"])
@pytest.mark.parametrize("part", PARTS)
def test_no_token_is_seen_before_its_time(part: str, kind: str) -> None:
    model, tokens_BT = scattered(routed(kind=kind, **PARTS[part])), tokens(3, 12)
    changed = tokens_BT.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 37
    before, after = model(tokens_BT), model(changed)
    torch.testing.assert_close(logits(model, tokens_BT)[:, :7], logits(model, changed)[:, :7], **EXACT)
    torch.testing.assert_close(before.mix_BTE[:, :7], after.mix_BTE[:, :7], **EXACT)
    assert (before.mix_BTE[:, 7:] - after.mix_BTE[:, 7:]).abs().amax(-1).min() > 1e-9, "the past is in every mix"


@pytest.mark.parametrize("dense", [DENSE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 4, 2)])
@pytest.mark.parametrize("part", PARTS)
def test_decoding_with_a_cache_is_the_whole_forward_pass(
    part: str, pieces: tuple[int, ...], dense: ModelConfig
) -> None:
    model, tokens_BT = scattered(routed(dense, **PARTS[part])), tokens(3, 12)
    cache = Cache(model.config, batch=3, capacity=12, dtype=torch.float64)
    parts = [logits(model, part, cache) for part in tokens_BT.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits(model, tokens_BT), **EXACT)


@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (8, 1, 1, 2)])
def test_a_padded_row_is_what_it_is_alone(pieces: tuple[int, ...]) -> None:
    """Whatever stands in the place of pads, and whether or not the first piece ends among them."""
    model, tokens_BT, pads = scattered(routed()), tokens(3, 12), (0, 5, 11)
    cache = Cache(model.config, 3, 12, torch.float64, pad_B=torch.tensor(pads))
    together = torch.cat([logits(model, part, cache) for part in tokens_BT.split(pieces, dim=1)], 1)
    assert together.isfinite().all()
    for row, pad in enumerate(pads):
        torch.testing.assert_close(together[row, pad:], logits(model, tokens_BT[row : row + 1, pad:])[0], **EXACT)


def test_generation_takes_the_likeliest_token_of_the_routed_head() -> None:
    model, prompts = scattered(routed()), [tokens(1, 4)[0], tokens(2, 7)[1]]
    found = generate(model, prompts, 5)
    for prompt, text in zip(prompts, found, strict=True):
        row = prompt.tolist()
        for token in text:
            assert token == int(logits(model, torch.tensor([row]))[0, -1].argmax())
            row.append(token)


def test_a_head_without_its_mix_is_refused() -> None:
    model = scattered(routed())
    with pytest.raises(AssertionError, match="mix_BTE"):
        model.logits(model(tokens(1, 4)).hidden_BTD)


def test_in_bf16_the_router_stays_wide_and_the_loss_is_close() -> None:
    model, tokens_BT = fresh(routed(), 1), tokens(4, 12)
    wide = logits(model, tokens_BT)
    narrow = model.cast(torch.bfloat16)
    output = narrow(tokens_BT)
    assert (narrow.shared.router.dtype, output.mix_BTE.dtype) == (torch.float32, torch.float32)
    assert (narrow.embed.weight.dtype, output.hidden_BTD.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(narrow.logits(output.hidden_BTD, output.mix_BTE).float(), wide, rtol=0, atol=0.02)


def test_a_higher_temperature_mixes_more_softly() -> None:
    sharp, soft = (scattered(routed(temperature=temperature)) for temperature in (1.0, 4.0))
    entropies = [normalised_entropy(model(tokens(2, 12)).mix_BTE).mean() for model in (sharp, soft)]
    assert entropies[0] < entropies[1] < 1


def test_the_head_alone_gives_the_router_no_gradient_unless_asked_to() -> None:
    """top1 is a choice; with `head_gradient` the values stay and the gradient of the chosen part comes."""
    grads, values = [], []
    for head_gradient in (False, True):
        model = scattered(routed(embed="merged", norms="merged", head_gradient=head_gradient))
        found = logits(model, tokens(2, 12))
        values.append(found.detach())
        found.square().sum().backward()
        grads.append(model.shared.router.grad)
    assert grads[0] is None
    assert grads[1].abs().max() > 0
    assert torch.equal(*values)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dense", [DENSE, UNTIED], ids=["tied", "untied"])
def test_the_layout_says_what_the_model_has(part: str, dense: ModelConfig) -> None:
    config = routed(dense, **PARTS[part])
    assert {name: tuple(tensor.shape) for name, tensor in LM(config).state_dict().items()} == tensor_shapes(config)


def test_the_config_survives_json_and_an_old_one_is_written_as_before() -> None:
    for config in (routed(), routed(UNTIED, "btx", head="soft", temperature=2.5)):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        assert ModelConfig.from_json(json.loads(json.dumps(config.identity()))) == config
        assert config.dense() in (DENSE, UNTIED)
    assert "shared" not in replace(routed(), shared=None).to_json()
    assert "shared" not in DENSE.to_json()
    assert routed().identity() == replace(routed(), shared=None).identity() | {"shared": {}}


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong: Any = SharedExperts("hard", "soft", "soft", temperature=0.0, head_gradient=True)
    with pytest.raises(InvalidInput) as error:
        replace(DENSE, shared=wrong).checked()
    assert [problem.path for problem in error.value.problems] == [
        "shared.embed",
        "shared.temperature",
        "shared.head_gradient",
        "experts",
    ]
    with pytest.raises(InvalidInput, match="leaves nothing to route"):
        routed(embed="merged", norms="merged", head="merged")


def test_a_checkpoint_holds_it_bit_by_bit(tmp_path: Path) -> None:
    model = fresh(routed(UNTIED), 3)
    write_model(tmp_path, model.config, model.state_dict().items(), tokenizer=None, card="")
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(logits(loaded, tokens(2, 12)), logits(model.eval(), tokens(2, 12)))


TRAINED = {
    "bam": replace(MIXTURE, shared=SharedExperts()),
    "btx, untied": replace(MIXTURE, attention=None, shared=SharedExperts(head_gradient=True), tie_embeddings=False),
    "soft head": replace(MIXTURE, shared=SharedExperts(head="soft")),
    "no other experts": replace(MIXTURE, attention=None, ffn=None, shared=SharedExperts()),
}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, name: str, dtype: str) -> None:
    config, phase = TRAINED[name], replace(PHASE, dtype=dtype)
    pace = Pace(micro_batch_rows=4, checkpoint_steps=5)
    whole, _ = train(fresh(config), RandomRows(), phase, Worker(tmp_path / "a"), pace)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(config), RandomRows(), phase, Worker(tmp_path / "b", die_at=5), pace)
    resumed, _ = train(fresh(config, seed=9), RandomRows(), phase, Worker(tmp_path / "b"), pace)
    assert masters(resumed) == masters(whole)


def test_the_routers_entropy_is_that_of_the_whole_batch() -> None:
    config, phase = TRAINED["bam"], replace(PHASE, dtype="fp64")
    rows = RandomRows().batch(0, phase.rows_per_batch)
    found = []
    for micro_batch_rows in (8, 3):
        model = fresh(config).double()
        sums = accumulate_gradient(model, Optimizer(model, phase), rows, phase, micro_batch_rows)
        found.append(sums.figures()["router/shared_entropy"])
    mix_BTE = fresh(config).double()(torch.from_numpy(rows)[:, :-1]).mix_BTE
    entropy = -(mix_BTE * mix_BTE.log()).sum(-1).mean() / torch.tensor(3.0).log()
    assert found == pytest.approx([entropy.item()] * 2, rel=1e-6)
    assert (
        "router/shared_entropy"
        not in accumulate_gradient(
            fresh(MIXTURE).double(), Optimizer(fresh(MIXTURE).double(), phase), rows, phase, 8
        ).figures()
    )


def test_norms_of_dense_models_do_not_decay() -> None:
    model = fresh(TRAINED["bam"])
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    Optimizer(model, replace(PHASE, weight_decay=0.5, dtype="fp32")).step(lr=0.1)
    kept = {name for name, param in model.named_parameters() if torch.equal(param, before[name])}
    assert kept == {"norm.weight", "blocks.0.norm.weight", "blocks.1.norm.weight"}


def trained(rank: int, world: int, folder: Path, config: ModelConfig, strategy: Any) -> dict[str, Tensor]:
    pace = Pace(micro_batch_rows=2, checkpoint_steps=100, strategy=strategy)
    phase = replace(PHASE, dtype="fp64", tokens=4 * PHASE.batch_tokens)
    optimizer, _ = train(fresh(config), RandomRows(), phase, RankWorker(folder, rank, world, None), pace)
    return {name: master.clone() for name, master in optimizer.masters()}


def test_sharded_over_two_ranks_it_is_what_one_computes(tmp_path: Path) -> None:
    """3 models on 2 ranks divide unevenly; of 4 each rank holds two."""
    four = replace(MIXTURE, attention=None, ffn=FFNExperts(4, 1), experts=(*MIXTURE.experts, "math"))
    with ranks(2) as group:
        for config in (*TRAINED.values(), replace(four, shared=SharedExperts())):
            expected = trained(0, 1, tmp_path, config, "ddp")
            for found in group.run(trained, 2, tmp_path, config, "fsdp"):
                assert found.keys() == expected.keys()
                for name, master in expected.items():
                    torch.testing.assert_close(found[name], master, rtol=1e-9, atol=1e-9, msg=name)


def test_recomputed_layers_change_no_bit(tmp_path: Path) -> None:
    config, phase = TRAINED["bam"], replace(PHASE, tokens=4 * PHASE.batch_tokens)
    runs = [
        train(fresh(config), RandomRows(), phase, Worker(tmp_path), Pace(activation_checkpointing=again))[0]
        for again in (False, True)
    ]
    assert masters(runs[0]) == masters(runs[1])


def test_the_model_is_built_of_the_same_branches() -> None:
    model = LM(routed())
    init_weights(model, 0)
    assert all(isinstance(block.ffn, MixtureOfExperts) for block in model.blocks)
    assert model.norm.weight.shape == (3, 24)
    assert (model.norm.weight == 1).all()
