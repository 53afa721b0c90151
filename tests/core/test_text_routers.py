"""Routers that read the text so far: what they read, what they tell apart, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_shared_upcycle import BAM, BTX, DENSE, NAMES, SINGLE, calibrated, models, perplexity, text
from torch import Tensor

from bam_core.checkpoint import load_model, write_model
from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.costs import flops_by_operation, params_total
from bam_core.nn.lm import LM, init_weights
from bam_core.upcycle.calibrate import calibrate
from bam_core.upcycle.variants import VARIANTS, Variant, mixture_config, rules_for

MERGED = replace(BAM, shared="merged")
TEXT = replace(MERGED, router_input="text")
D = DENSE.d_model


def scattered(config: ModelConfig) -> LM:
    model = LM(config)
    init_weights(model, 3)
    for name, parameter in model.named_parameters():
        if name.endswith(("router", "embed.weight")):
            parameter.data *= 30  # so that texts and experts differ
    return model.double().eval()


def logits(model: LM, tokens_BT: Tensor) -> Tensor:
    output = model(tokens_BT)
    return model.logits(output.hidden_BTD, output.mix_BTE)


def tokens(n_rows: int = 2, n_time: int = 9) -> Tensor:
    return torch.randint(30, (n_rows, n_time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", [MERGED, BTX], ids=["bam", "btx, routed"])
def test_with_no_weight_on_the_text_the_model_is_the_one_whose_routers_read_the_token(variant: Variant) -> None:
    token = scattered(mixture_config(DENSE, NAMES, variant))
    both = LM(mixture_config(DENSE, NAMES, replace(variant, router_input="text"))).double().eval()
    state = token.state_dict()
    for name, wanted in both.state_dict().items():
        if wanted.shape != state[name].shape:
            assert name.endswith(("attn.router", "ffn.router"))
            state[name] = torch.cat((state[name], torch.zeros_like(state[name])), -1)
    both.load_state_dict(state)
    torch.testing.assert_close(logits(both, tokens()), logits(token, tokens()), rtol=0, atol=1e-13)


def test_what_a_router_reads_is_the_token_and_the_mean_of_the_text() -> None:
    """The first layer's routing by hand, from the definition."""
    model, tokens_BT = scattered(mixture_config(DENSE, NAMES, TEXT)), tokens()
    x_BTD = model.embed.weight[tokens_BT]
    unit_BTD = x_BTD / x_BTD.square().mean(-1, keepdim=True).sqrt()
    mean_BTD = torch.stack([unit_BTD[:, : t + 1].mean(1) for t in range(tokens_BT.shape[1])], 1)
    block = model.blocks[0]
    read_BTR = torch.cat((block.norm(x_BTD), mean_BTD), -1)
    routing = model(tokens_BT).routing[0]
    torch.testing.assert_close(routing.attention.logits_NE, read_BTR @ block.attn.router.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing.ffn.logits_NE, read_BTR @ block.ffn.router.T, rtol=0, atol=1e-12)


def test_no_token_looks_ahead() -> None:
    model, tokens_BT = scattered(mixture_config(DENSE, NAMES, TEXT)), tokens()
    changed = tokens_BT.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 30
    before, after = logits(model, tokens_BT), logits(model, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert (before[:, 5:] - after[:, 5:]).abs().amin(-1).max() > 1e-3


def test_the_router_learns_from_the_text_and_so_do_the_embeddings() -> None:
    model = scattered(mixture_config(DENSE, NAMES, TEXT)).train()
    logits(model, tokens()).square().mean().backward()
    for block in model.blocks:
        for router in (block.attn.router, block.ffn.router):
            assert router.grad[:, D:].abs().max() > 0
            assert router.grad[:, :D].abs().max() > 0


@pytest.mark.parametrize("variant", [TEXT, replace(TEXT, attention="merged")], ids=["bam", "btx"])
def test_what_is_streamed_is_what_is_made(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration's walk, a few rows at a time, sees the finished model."""
    monkeypatch.setattr("bam_core.upcycle.walk.CHUNK_TOKENS", 40)
    found, model = calibrated(variant)
    wanted = {domain: perplexity(model, tokens_BT) for domain, tokens_BT in text().items()}
    wanted["average"] = sum(wanted.values()) / 3
    assert found.report["perplexity"]["mixture"] == pytest.approx(wanted, rel=SINGLE)


def test_text_tells_domains_apart_where_a_token_cannot() -> None:
    """Words that all domains share, half of a text: such a token says nothing, the text before it does."""
    generator = torch.Generator().manual_seed(5)
    rows = {}
    for index, name in enumerate(NAMES):
        own = torch.randint(9 * index, 9 * index + 9, (24, 17), generator=generator)
        common = torch.randint(27, 30, (24, 17), generator=generator)
        rows[name] = own.where(torch.rand(24, 17, generator=generator) < 0.5, common)

    def accuracy(variant: Variant) -> float:
        target = mixture_config(DENSE, NAMES, variant)
        found = calibrate(target, rules_for(variant, target), models(), variant, rows, 7)
        return found.report["layers"][0]["ffn_accuracy"]

    assert accuracy(TEXT) > 0.85
    assert accuracy(MERGED) < 0.75


def test_it_is_counted() -> None:
    plain, both = (mixture_config(DENSE, NAMES, variant) for variant in (MERGED, TEXT))
    routers = 2 * 2 * 3 * D  # layers, branches, experts
    assert params_total(both) - params_total(plain) == routers
    assert sum(flops_by_operation(both, 5).values()) - sum(flops_by_operation(plain, 5).values()) == 2 * routers


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    model = scattered(mixture_config(DENSE, NAMES, TEXT)).float()
    write_model(tmp_path, model.config, model.state_dict().items(), tokenizer=None, card="")
    again = load_model(tmp_path)
    assert again.config.router_input == "text"
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_what_reads_the_token_is_written_as_before() -> None:
    assert "router_input" not in mixture_config(DENSE, NAMES, MERGED).to_json()
    assert "router_input" not in MERGED.to_json()
    assert Variant.from_json(TEXT.to_json()) == TEXT


def test_without_a_router_there_is_nothing_to_read() -> None:
    with pytest.raises(InvalidInput, match="router_input: 'text': no branch has experts"):
        mixture_config(DENSE, NAMES, replace(VARIANTS["soup"], router_input="text"))
    with pytest.raises(InvalidInput, match="router_input"):
        replace(DENSE, router_input="text").checked()
