"""The sentences: who won, by how much, and the caveats that the figures call for - and no others."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from markupsafe import Markup

from pipelines.report import ReportInputs
from pipelines.report.findings import find, routing_findings
from tests.report.fakes import fake_run


def plain(text: Markup) -> str:
    return str(text.striptags())


def caveats(inputs: ReportInputs) -> str:
    return " ".join(plain(caveat) for caveat in find(inputs).caveats)


def changed(model: str, **figures: Any) -> ReportInputs:
    perplexity = deepcopy(fake_run().perplexity)
    perplexity["models"][model] |= figures
    return fake_run(perplexity=perplexity)


def test_headline_names_the_winner_and_its_rivals():
    found = find(fake_run())
    assert plain(found.headline) == (
        "train.bam has the lowest average perplexity: 11.58, against train.btx (12.80), dense (13.28), "
        "ensemble (12.95) and seed (17.16)."
    )
    assert [(tile.value, plain(tile.what)) for tile in found.tiles] == [
        ("11.58", "average perplexity of train.bam"),
        ("\u22129.5%", "against train.btx"),
        ("\u221212.8%", "against dense"),
        ("\u221210.6%", "against ensemble"),
        ("\u221232.5%", "against seed"),
    ]


def test_a_mixture_that_lost_is_not_made_the_winner():
    assert plain(find(changed("train.bam", average_perplexity=13.0)).headline).startswith("train.btx has the lowest")
    assert plain(find(changed("seed", average_perplexity=1.0)).headline) == (
        "seed has the lowest average perplexity: 1.00, against train.bam (11.58), dense (13.28) and ensemble (12.95)."
    )


def test_says_that_btx_is_smaller_with_the_papers_matched_figure():
    text = caveats(fake_run())
    assert "train.bam uses 1.31 times the active parameters and 1.93 times the FLOPs per token of train.btx" in text
    assert "narrows the gap from 9.5% to about 3% (BAM, Tables 1 and 5)" in text


def test_does_not_speak_of_size_where_it_is_equal_or_btx_won():
    size = {key: fake_run().perplexity["models"]["train.bam"][key] for key in ("params_active", "flops_per_token")}
    perplexity = deepcopy(fake_run().perplexity)
    for name in ("train.btx", "dense", "seed"):
        perplexity["models"][name] |= size
    assert "size" not in caveats(fake_run(perplexity=perplexity))
    assert "BAM, Tables" not in caveats(changed("train.bam", average_perplexity=13.0))
    assert "BAM, Tables" not in caveats(fake_run(routing=None))


def test_says_where_a_specialist_is_better():
    assert (
        "train.bam is 22.6% behind expert.code on code, "
        "7.8% behind expert.law on law and 3.8% behind expert.math on math."
    ) in caveats(fake_run())


def test_says_that_one_seed_has_no_interval():
    assert "One random seed" in caveats(fake_run())
    assert "One random seed" not in caveats(changed("train.bam", seeds=[0, 1, 2]))


def test_says_that_training_differed():
    assert "Training differs" not in caveats(fake_run())
    assert "Training differs: 500k tokens for train.bam, 1.00M for train.btx." in caveats(
        changed("train.bam", train_tokens=500_000)
    )


def test_names_unused_experts():
    routing = deepcopy(fake_run().routing)
    for domain in routing["models"]["train.btx"]["domains"].values():
        domain["ffn"]["fraction"][2] = [0.5, 0.009, 0.4, 0.091]
    assert [plain(line) for line in routing_findings(fake_run(routing=routing))] == [
        "train.bam: every FFN expert is used in every layer.",
        "train.btx: nearly unused FFN experts: code in layer 2.",
    ]
    routing["models"]["train.btx"]["domains"]["math"]["ffn"]["fraction"][2][1] = 0.02
    assert "unused" not in plain(routing_findings(fake_run(routing=routing))[1])
