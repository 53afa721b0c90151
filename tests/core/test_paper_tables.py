"""The paper's Tables 7, 9 and 10: reproduced exactly where they are right, and every error named where they are not.

Source: BAM, arXiv 2408.08274. A figure that differs from ours without an erratum fails, and so does an erratum
for a figure that agrees.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bam_core.nn import paper
from bam_core.nn.costs import flops_by_operation, params_by_component, params_total
from bam_core.nn.paper import ERRATA, METHODS, TABLE_2, TABLE_7, TABLE_9, TABLE_10, Erratum

D, F, C = 1024, 4096, 256

CELLS = [
    (number, row, method, printed)
    for number, table in ((7, TABLE_7), (9, TABLE_9))
    for row, columns in table.items()
    for method, printed in columns.items()
]


def erratum_of(table: int, row: str, method: str) -> Erratum | None:
    found = [erratum for erratum in ERRATA if (erratum.table, erratum.row, erratum.method) == (table, row, method)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(("table", "row", "method", "printed"), CELLS)
def test_every_figure_is_ours_or_a_named_error(table: int, row: str, method: str, printed: int) -> None:
    ours = (paper.right_table_7 if table == 7 else paper.right_table_9)(METHODS[method])[row]
    erratum = erratum_of(table, row, method)
    if erratum is None:
        assert printed == ours
    else:
        assert (erratum.printed, erratum.right) == (printed, ours)
        assert printed != ours


def test_every_erratum_is_about_a_figure_or_says_why_in_words() -> None:
    cells = {(table, row, method) for table, row, method, _ in CELLS}
    numbers = [erratum for erratum in ERRATA if erratum.printed is not None]
    assert len(numbers) == 14
    assert {(erratum.table, erratum.row, erratum.method) for erratum in numbers} <= cells
    assert all(erratum.why for erratum in ERRATA)


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_active_counts_are_the_sums_of_its_rows(method: str) -> None:
    """So the errors of the column `active` are those of its rows, and no others."""
    of_a_block = ("layernorm", "attn_out", "qkv_proj", "ffn_exp", "ffn_red", "router")
    of_the_model = ("input_embedding", "output_embedding", "final_layernorm")
    summed = 6 * sum(TABLE_9[row][method] for row in of_a_block) + sum(TABLE_9[row][method] for row in of_the_model)
    assert summed == TABLE_9["active"][method]


@pytest.mark.parametrize("method", ["bam", "btx", "btx_top3of6"])
def test_table_7_is_exactly_what_a_width_of_4098_gives(method: str) -> None:
    printed = {row: columns[method] for row, columns in TABLE_7.items()}
    assert paper.right_table_7(METHODS[method], paper.FUSED_WIDTH_PRINTED) == printed


def test_table_7_with_the_right_width() -> None:
    right = {method: paper.right_table_7(METHODS[method])["total"] for method in METHODS}
    assert right == {
        "dense": 21_495_808,
        "bam": 48_250_880,
        "bam_shared_kv": 35_667_968,
        "btx": 21_504_000,
        "btx_top3of6": 46_673_920,
    }


@pytest.mark.parametrize(("n", "total"), [*paper.TOTALS_BY_EXPERTS.items()])
def test_table_4_totals(n: int, total: int) -> None:
    assert params_total(paper.btx(n)) == total
    millions = {4: 700, 5: 738, 6: 776, 7: 813, 8: 851}[n]
    assert abs(total / 1e6 - millions) < 1  # the paper rounds some and cuts others off


OPERATIONS = {
    "attention_router": ("attention_router",),
    "qkv": ("queries", "keys", "values"),
    "mask": ("scores",),
    "projection": ("outputs",),
    "ffn_router": ("ffn_router",),
    "ffn": ("ffn",),
}


@pytest.mark.parametrize("row", TABLE_10)
@pytest.mark.parametrize(("method", "n", "k"), [("btx", 4, 1), ("btx", 6, 3), ("bam", 4, 1)])
def test_table_10(row: str, method: str, n: int, k: int) -> None:
    """Its formulas, evaluated at the small size, against our count of one layer."""
    config = paper.bam() if method == "bam" else paper.btx(n, k)
    flops, params = flops_by_operation(config, C, paper=True, layer=0), params_by_component(config)
    values = {"n": n, "k": k, "d": D, "f": F, "c": C}
    printed = {name: eval(TABLE_10[row][f"{method}_{name}"], {}, values) for name in ("params", "flops")}
    assert printed["flops"] == sum(flops.get(name, 0) for name in OPERATIONS[row])
    assert printed["params"] == sum(params.get(name, {"total": 0})["total"] for name in OPERATIONS[row]) // 6


def test_table_10_leaves_out_the_values_and_grouped_heads() -> None:
    ours, theirs = (flops_by_operation(paper.bam(), C, paper=convention) for convention in (False, True))
    assert ours.keys() - theirs.keys() == {"weighted_values", "head"}
    assert ours["weighted_values"] == ours["scores"]
    keys = flops_by_operation(paper.LARGE, C, layer=0)
    assert keys["keys"] * 3 == keys["queries"]
    assert {(e.table, e.row) for e in ERRATA if e.printed is None} == {
        (10, "qkv"),
        (10, "mask"),
        (2, "average"),
        (3, "last row"),
    }


@pytest.mark.parametrize("model", TABLE_2)
def test_table_2_averages_leave_out_pretrain(model: str) -> None:
    pretrain, *domains, average = TABLE_2[model]
    assert abs(sum(domains) / 3 - average) < 0.0051
    assert abs((pretrain + sum(domains)) / 4 - average) > 1


def test_large_is_two_billion() -> None:
    assert round(params_total(paper.LARGE) / 1e9, 2) == 1.99
    assert round(params_total(paper.bam(dense=paper.LARGE)) / 1e9, 2) == 6.20
    assert round(params_total(paper.bam("shared", dense=paper.LARGE)) / 1e9, 2) == 6.00
    assert round(params_total(paper.btx(dense=paper.LARGE)) / 1e9, 2) == 5.43


def test_a_plan_compares_models_of_the_papers_shape_only() -> None:
    compared = paper.comparison(paper.bam())
    assert compared is not None
    assert (compared["flops_per_token_and_layer"], compared["flops_as_printed"]) == (48_250_880, 48_257_024)
    assert compared["printed"] == {"total": 776_002_560, "active": 662_731_776}
    assert any("662,756,352" in note for note in compared["notes"])
    top_3 = paper.comparison(paper.btx(6, 3))
    assert top_3 is not None
    assert top_3["flops_as_printed"] == 46_692_352
    assert any("775,990,272" in note for note in top_3["notes"])


def test_a_comparison_does_not_read_names_and_lengths() -> None:
    named = replace(paper.btx(6, 3), experts=("general", "law"), max_seq_len=512, norm="layer")
    named = replace(named, ffn=replace(named.ffn, slots=("general",) * 3 + ("law",) * 3))
    assert paper.comparison(named) == paper.comparison(paper.btx(6, 3))


@pytest.mark.parametrize(
    "other",
    [
        paper.LARGE,
        replace(paper.SMALL, n_layers=7),
        replace(paper.SMALL, tie_embeddings=True),
        replace(paper.btx(), ffn=replace(paper.btx().ffn, layers=(0, 1))),
        replace(paper.btx(), ffn=replace(paper.btx().ffn, soft_layers=(0,))),
        replace(paper.btx(), ffn=replace(paper.btx().ffn, n_experts=8, split=2)),
    ],
)
def test_no_comparison_with_another_shape(other: object) -> None:
    assert paper.comparison(other) is None
