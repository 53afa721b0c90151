"""Models in memory to a mixture and back: the same tensors as the stage's way, and a receipt that sees a fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bam_core.checkpoint import load_model, open_tensors, write_model
from bam_core.config import ModelConfig
from bam_core.data.rows import TextRows
from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.errors import InvalidInput, UsageError
from bam_core.evaluate.perplexity import score
from bam_core.nn.lm import LM, init_weights
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.calibrate import calibrate
from bam_core.upcycle.models import ModelTensors, extract_model, upcycle_models
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.specs import FFNSpec, MergeSpec
from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for, with_gains

CONFIG = ModelConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=16)
FITTED = replace(VARIANTS["bam"], router_init="ridge", ffn=FFNSpec(scale="gate", top_k=2, split=2))
SEED = 3


@pytest.fixture
def dense() -> dict[str, LM]:
    models = {}
    for seed, name in enumerate(("general", "law", "code")):
        models[name] = LM(CONFIG)
        init_weights(models[name], seed)
    return models


def rows() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randint(40, (2, 17), generator=draw) for name in ("general", "law", "code")}


def equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("variant", [VARIANTS["btx"], FITTED, replace(VARIANTS["bam"], merge=MergeSpec("seed"))])
def test_the_same_tensors_as_step_by_step(dense: dict[str, LM], tmp_path: Path, variant: object) -> None:
    folders = {}
    for name, model in dense.items():
        folders[name] = tmp_path / name
        write_model(folders[name], CONFIG, model.state_dict().items(), tokenizer=None, card=None)
    assert variant is not None
    text = rows() if variant is FITTED else None
    made = upcycle_models(dense, variant, rows=text, seed=SEED)
    from_files = upcycle_models({name: str(folder) for name, folder in folders.items()}, variant, rows=text, seed=SEED)
    target = mixture_config(CONFIG, list(dense), variant)
    rules, sources = rules_for(variant, target), {name: open_tensors(folder) for name, folder in folders.items()}
    found = calibrate(target, rules, sources, variant, text, SEED) if text else None
    target = with_gains(target, found.gains) if found else target
    wanted = dict(upcycle(target, rules, sources, SEED, None, found.fitted if found else None))
    assert made.model.config == from_files.model.config == target
    assert equal(dict(made.model.state_dict()), wanted)
    assert equal(dict(from_files.model.state_dict()), wanted)
    assert (made.step0 is not None) == (found is not None)

    made.save(tmp_path / "mixture")
    assert equal(dict(load_model(tmp_path / "mixture").state_dict()), wanted)
    assert made.receipt() == receipt(tmp_path / "mixture", folders, made=made.tensors)


def test_the_mixture_can_be_trained_and_shares_nothing_with_its_parents(dense: dict[str, LM]) -> None:
    made = upcycle_models(dense, "btx")
    before = {name: tensor.clone() for name, tensor in dense["general"].state_dict().items()}
    assert not made.model.training
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(1)
    assert equal(dict(dense["general"].state_dict()), before)


def test_a_swapped_expert_shows_in_the_receipt(dense: dict[str, LM]) -> None:
    made = upcycle_models(dense, "bam")
    assert {found["branch"] for found in made.receipt()["experts"].values()} == {"attention"}
    assert max(found["max_abs_diff"] for found in made.receipt()["experts"].values()) < 1e-12
    with torch.no_grad():
        experts = made.model.get_parameter("blocks.1.ffn.w_down")
        experts[[1, 2]] = experts[[2, 1]]
    found = made.receipt()["experts"]
    assert found["general"]["max_abs_diff"] < 1e-12
    assert found["law"]["max_abs_diff"] > 1e-3
    assert (found["code"]["layer"], found["code"]["branch"]) == (1, "ffn")


def test_an_expert_comes_back(dense: dict[str, LM]) -> None:
    mixture = upcycle_models(dense, replace(VARIANTS["bam"], merge=MergeSpec("seed"))).model
    back = extract_model(mixture, "general")
    assert back.config == CONFIG
    assert equal(dict(back.state_dict()), dict(dense["general"].state_dict()))
    law, own = extract_model(mixture, "law").state_dict(), dense["law"].state_dict()
    assert [name for name in own if not torch.equal(law[name], own[name])] == ["embed.weight"]
    with pytest.raises(InvalidInput, match="did you mean 'law'"):
        extract_model(mixture, "laws")


def test_what_cannot_be_mixed(dense: dict[str, LM]) -> None:
    other = LM(replace(CONFIG, rope_theta=5e5))
    init_weights(other, 0)
    with pytest.raises(InvalidInput, match="rope_theta"):
        upcycle_models({**dense, "other": other}, "btx")
    with pytest.raises(UsageError, match="did you mean 'bam'"):
        upcycle_models(dense, "bamm")
    with pytest.raises(InvalidInput, match="at least one dense model"):
        upcycle_models({}, "bam")
    with pytest.raises(InvalidInput, match="is fitted on text, and no router was"):
        upcycle_models(dense, FITTED)


def test_tensors_of_a_model_are_its_parameters(dense: dict[str, LM]) -> None:
    source, model = ModelTensors(dense["law"]), dense["law"]
    assert source.names() == list(model.state_dict())
    assert source.shape("embed.weight") == (40, 16)
    assert source.get("embed.weight").data_ptr() == model.get_parameter("embed.weight").data_ptr()
    assert not source.get("embed.weight").requires_grad


def test_rows_of_texts_score_as_the_model_says() -> None:
    """Each predicted token once, and all bytes of the text: against the model's own logits."""
    texts = ["to be or not to be", "that is the question", "whether tis nobler"]
    tokenizer = Tokenizer(train_bpe(texts, 260))
    model = LM(replace(CONFIG, vocab_size=tokenizer.vocab_size)).to(torch.float64)
    init_weights(model, 0)
    rows = TextRows(texts, tokenizer, 16)
    stream = [tokenizer.eos_id]
    for ids in tokenizer.encode_batch(texts):
        stream += [*ids, tokenizer.eos_id]
    assert rows.tokens_BT.tolist() == [stream[i : i + 17] for i in range(0, len(stream) - 16, 16)]
    found, _ = score(model, rows, 10_000)
    tokens_BT = torch.from_numpy(rows.tokens_BT)
    logits = model.logits(model(tokens_BT[:, :-1]).hidden_BTD)
    nll = -logits.log_softmax(-1).gather(-1, tokens_BT[:, 1:, None]).mean().item()
    assert found.nll == pytest.approx(nll, rel=1e-12)
    assert found.tokens == 16 * len(rows)
    assert found.n_bytes == sum(int(tokenizer.token_bytes[row[1:]].sum()) for row in rows.tokens_BT)
    with pytest.raises(InvalidInput, match="must fill at least one row of 16 tokens"):
        TextRows(["a"], tokenizer, 16)
