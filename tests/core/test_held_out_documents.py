"""Documents found again in packed rows, and their strided loss against one forward pass per token, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.data.packing import pack
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.errors import ArtifactDamaged, InvalidInput
from bam_core.evaluate import documents as documents_module
from bam_core.evaluate.documents import Documents, choose
from bam_core.evaluate.perplexity import DomainScore, score, token_average_nll, token_nll
from bam_core.evaluate.routing import RoutingSums
from bam_core.evaluate.strided import Windows, score_documents
from bam_core.nn.lm import LM, init_weights

ROUNDING = 1e-12
"""float64, a few hundred terms of order 1."""
EOS, VOCAB = 3, 29
CONTEXT = 8
DENSE = ModelConfig(vocab_size=VOCAB, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=20, max_seq_len=CONTEXT)
MIXTURE = replace(
    DENSE,
    attention=AttentionExperts(3, 3),
    ffn=FFNExperts(3, 1, capacity_factor=0.5),
    experts=("a", "b", "c"),
).checked("a test")


SHARED = replace(MIXTURE, shared=SharedExperts()).checked("a test")


class SomeRows:
    """Packed rows in memory."""

    def __init__(self, texts: Sequence[Sequence[int]], seq_len: int, token_bytes: NDArray[np.int32]) -> None:
        blocks = list(pack(texts, seq_len, EOS, token_bytes))
        self.tokens = np.concatenate([block.tokens for block in blocks]).astype(np.int64)
        self.n_bytes = np.concatenate([block.n_bytes for block in blocks]).astype(np.int64)
        self.asked = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        self.asked = max(self.asked, len(indices))
        return self.tokens[indices]


def some_bytes(seed: int = 0) -> NDArray[np.int32]:
    found = np.random.default_rng(seed).integers(1, 9, size=VOCAB).astype(np.int32)
    found[EOS] = 0
    return found


def some_texts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Documents of these lengths; no token is the end of text."""
    rng = np.random.default_rng(seed)
    return [[int(t) + (t >= EOS) for t in rng.integers(VOCAB - 1, size=n)] for n in lengths]


def found_in(texts: Sequence[Sequence[int]], seq_len: int = 5) -> Documents:
    return Documents.of(SomeRows(texts, seq_len, some_bytes()), some_bytes())


def a_model(config: ModelConfig, seed: int = 0) -> LM:
    model = LM(config)
    init_weights(model, seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed.weight", "router")):
            parameter.data *= 20  # so that texts, models and experts differ
    return model.double()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=4, max_size=12), st.integers(1, 4), st.integers(1, 60))
def test_parts_share_no_document_and_leave_none_out(lengths: list[int], n_parts: int, max_tokens: int):
    """With room for all of them; with less room each part still keeps to its own."""
    documents = found_in(some_texts([*lengths, 30]), seq_len=3)
    whole = choose(documents, 10_000).numbers.tolist()
    parts = [choose(documents, 10_000, (place, n_parts)).numbers.tolist() for place in range(1, n_parts + 1)]
    assert sorted(number for part in parts for number in part) == whole
    for place, part in enumerate(parts, 1):
        assert set(choose(documents, max_tokens, (place, n_parts)).numbers.tolist()) <= set(part)


def test_a_part_without_documents_is_refused():
    with pytest.raises(InvalidInput, match="part 3 of 3"):
        choose(found_in(some_texts([4, 4])), 10, (3, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 4))
def test_documents_are_those_that_were_packed(lengths: list[int], seq_len: int, rows_per_block: int):
    """Tokens, bytes and their sums; the last one may be cut, and what was dropped is not there."""
    if sum(lengths) + len(lengths) < seq_len:
        return
    texts, token_bytes = some_texts(lengths), some_bytes()
    rows = SomeRows(texts, seq_len, token_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "ROWS_PER_BLOCK", rows_per_block)
        found = Documents.of(rows, token_bytes)
    stream = [EOS, *(token for text in texts for token in [*text, EOS])][: len(rows) * seq_len + 1]
    assert found.tokens.sum() == len(rows) * seq_len == len(stream) - 1
    assert found.n_bytes.sum() == rows.n_bytes.sum()
    assert found.cut == (stream[-1] != EOS)
    for number in range(len(found)):
        ids = found.ids(number, 0, int(found.tokens[number]) + 1).tolist()
        whole = [EOS, *texts[number], EOS]
        is_cut = found.cut and number == len(found) - 1
        assert ids == (whole[: len(ids)] if is_cut else whole)
        assert not is_cut or len(ids) < len(whole)
        assert found.n_bytes[number] == token_bytes[ids[1:]].sum()
        for start in range(len(ids)):
            assert found.ids(number, start, len(ids)).tolist() == ids[start:]
            assert found.ids(number, start, start + 1).tolist() == [ids[start]]


def test_from_shards_as_from_memory(tmp_path: Path):
    texts = some_texts([20, 0, 7, 61, 3])
    write_shards(tmp_path / "valid", pack(texts, 5, EOS, some_bytes()), rows_per_shard=4)
    stored, held = Documents.of(ShardedRows(tmp_path / "valid"), some_bytes()), found_in(texts)
    assert np.array_equal(stored.edges, held.edges)
    assert np.array_equal(stored.bytes_before, held.bytes_before)
    assert stored.ids(3, 10, 50).tolist() == texts[3][9:49]


def test_rows_that_are_not_of_one_stream_are_refused():
    rows = SomeRows(some_texts([40]), 5, some_bytes())
    rows.tokens[4, 0] += 1
    with pytest.raises(ArtifactDamaged, match="do not continue"):
        Documents.of(rows, some_bytes())


def test_a_long_document_is_read_in_parts(monkeypatch: pytest.MonkeyPatch):
    """Never more rows at a time than a batch of windows, or a block, needs."""
    monkeypatch.setattr(documents_module, "ROWS_PER_BLOCK", 4)
    rows = SomeRows(some_texts([3000]), 5, some_bytes())
    documents = Documents.of(rows, some_bytes())
    scored = score_documents(a_model(DENSE), choose(documents, 10_000), 4, batch_tokens=64)
    assert scored.tokens.tolist() == [3000]  # its last token and the end of the text did not fill a row
    assert rows.asked <= 4
    assert documents.edges.nbytes == 16


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 300))
def test_the_choice_is_of_whole_documents_until_there_are_enough(lengths: list[int], max_tokens: int):
    if sum(lengths) + len(lengths) < 5:
        return
    documents = found_in(some_texts(lengths))
    chosen = choose(documents, max_tokens)
    whole = documents.tokens[: max(1, len(documents) - documents.cut)]
    assert 1 <= len(chosen.numbers) <= len(whole)
    assert sorted(set(chosen.numbers.tolist())) == chosen.numbers.tolist()
    assert chosen.tokens.tolist() == [min(max_tokens, n) for n in whole[chosen.numbers]]
    total = chosen.tokens.sum()
    assert total < 2 * max_tokens
    assert total >= max_tokens or len(chosen.numbers) == len(whole)
    for number, tokens, n_bytes in zip(chosen.numbers, chosen.tokens, chosen.n_bytes, strict=True):
        assert n_bytes == some_bytes()[documents.ids(number, 1, int(tokens) + 1)].sum()
    more = choose(documents, 2 * max_tokens)
    assert set(chosen.numbers) <= set(more.numbers), "a larger choice only adds"


def test_the_choice_is_spread_and_blind_to_length():
    lengths = [4] * 500 + [40] * 500
    documents = found_in(some_texts(lengths))
    chosen = choose(documents, 2200)  # about a tenth
    for part in np.array_split(np.arange(1000), 10):
        assert 8 <= np.isin(part, chosen.numbers).sum() <= 12
    gaps = {int(b - a) for a, b in pairwise(chosen.numbers)}
    assert len(gaps) <= 3
    turned = choose(found_in(some_texts(lengths[::-1])), 2200)
    assert len(set(chosen.numbers) ^ set(turned.numbers)) <= 5


def naive(model: LM, ids: NDArray[np.int64], stride: int) -> tuple[list[float], RoutingSums | None]:
    """-ln p of every token of `eos doc eos` from one forward pass of its own, and the routing where it is predicted."""
    losses, sums = [], RoutingSums(model.config) if model.config.is_mixture else None
    for target in range(1, len(ids)):
        start = 0 if target <= CONTEXT else stride * ceil((target - CONTEXT) / stride)
        with torch.no_grad():
            output = model(torch.from_numpy(ids[None, start:target]))
            logits_V = model.logits(output.hidden_BTD, output.mix_BTE)[0, -1]
        losses.append(-float(logits_V.log_softmax(-1)[ids[target]]))
        if sums is not None:
            sums.add([last_of(layer) for layer in output.routing])
    return losses, sums


def last_of(layer: object) -> object:
    def cut(routing: object) -> object:
        fields = ("weights_NK", "experts_NK", "probs_NE", "logits_NE")
        return replace(routing, **{name: getattr(routing, name)[:, -1:] for name in fields})  # type: ignore[type-var]

    return replace(layer, attention=cut(layer.attention), ffn=cut(layer.ffn))  # type: ignore


@pytest.mark.parametrize("config", [DENSE, MIXTURE, SHARED], ids=["dense", "mixture", "shared"])
@pytest.mark.parametrize("stride", [CONTEXT, CONTEXT // 2, 3, 1])
def test_every_token_is_predicted_once_from_its_own_window(config: ModelConfig, stride: int):
    """Lengths around the context, and several documents in each batch."""
    documents = found_in(some_texts([1, 7, 0, 8, 30, 9, 13, 6, 17]))
    model = a_model(config).eval()
    chosen = choose(documents, 10_000)
    scored = score_documents(model, chosen, stride, batch_tokens=50)
    assert scored.numbers.tolist() == list(range(len(documents) - documents.cut))
    sums = []
    for place, number in enumerate(scored.numbers):
        losses, routed = naive(model, documents.ids(number, 0, int(documents.tokens[number]) + 1), stride)
        assert len(losses) == scored.tokens[place] == documents.tokens[number]
        assert scored.nll[place] == pytest.approx(sum(losses), abs=ROUNDING * len(losses))
        sums.append(routed)
    if scored.routing is None:
        return
    for branch in ("attention", "ffn"):
        for figure in ("mean_gate", "entropy"):
            found = np.array(scored.routing.to_json()[branch][figure])
            each = [np.array(routed.to_json()[branch][figure]) for routed in sums if routed]
            assert np.allclose(found, np.average(each, axis=0, weights=scored.tokens), atol=1e-10)


def test_strides_differ_where_context_matters():
    documents, model = found_in(some_texts([60, 60])), a_model(DENSE)
    found = [score_documents(model, choose(documents, 10_000), stride).total.nll for stride in (CONTEXT, 4, 1)]
    assert len({round(nll, 6) for nll in found}) == 3


def test_where_each_document_is_a_row_it_is_scored_as_the_row():
    texts = some_texts([CONTEXT - 1] * 6)
    rows = SomeRows(texts, CONTEXT, some_bytes())
    documents = Documents.of(rows, some_bytes())
    assert len(documents) == len(rows) == 6
    for config in (DENSE, MIXTURE):
        model = a_model(config)
        by_row, routed = score(model, rows, 10_000)
        found = score_documents(model, choose(documents, 10_000), 4)
        assert found.total.nll == pytest.approx(by_row.nll, abs=ROUNDING)
        assert (found.total.tokens, found.total.n_bytes) == (by_row.tokens, by_row.n_bytes)
        if found.routing is not None and routed is not None:
            for figure, layers in routed.to_json()["ffn"].items():
                assert np.allclose(found.routing.to_json()["ffn"][figure], layers, atol=ROUNDING), figure


@pytest.mark.parametrize("batch_tokens", [1, 8, 37, 10_000])
def test_batches_leave_no_trace_but_rounding(batch_tokens: int):
    chosen = choose(found_in(some_texts([1, 30, 2, 8, 9, 20, 0, 5])), 10_000)
    model = a_model(MIXTURE)
    wanted = score_documents(model, chosen, 4, batch_tokens=1)
    found = score_documents(model, chosen, 4, batch_tokens=batch_tokens)
    assert np.allclose(found.nll, wanted.nll, atol=1e-11, rtol=0)
    assert found.routing is not None
    assert wanted.routing is not None
    assert found.routing.to_json()["ffn"]["fraction"] == wanted.routing.to_json()["ffn"]["fraction"]


def test_a_document_knows_no_other():
    """Also not through a batch, and not through what stands before it in the stream."""
    texts, model = some_texts([12, 20, 5, 11, 30]), a_model(MIXTURE)
    before = score_documents(model, choose(found_in(texts), 10_000), 4)
    texts[1] = some_texts([9], seed=1)[0]
    after = score_documents(model, choose(found_in(texts), 10_000), 4)
    assert np.allclose(np.delete(before.nll, 1), np.delete(after.nll, 1), atol=1e-11, rtol=0)


def test_some_documents_are_scored_as_among_all():
    documents, model = found_in(some_texts([5, 9, 30, 2, 12, 17, 8, 20])), a_model(DENSE)
    everything, some = (score_documents(model, choose(documents, n), 4) for n in (10_000, 40))
    assert 1 < len(some.numbers) < len(everything.numbers)
    assert some.numbers.tolist() != list(range(len(some.numbers)))
    assert np.allclose(some.nll, everything.nll[some.numbers], atol=1e-11, rtol=0)
    assert np.array_equal(some.n_bytes, everything.n_bytes[some.numbers])


def test_a_document_that_is_too_long_is_scored_up_to_there():
    documents, model = found_in(some_texts([90, 90])), a_model(DENSE)
    chosen = choose(documents, 21)
    assert chosen.tokens.tolist() == [21]
    losses, _ = naive(model, documents.ids(int(chosen.numbers[0]), 0, 22), 4)
    assert score_documents(model, chosen, 4).nll[0] == pytest.approx(sum(losses), abs=1e-10)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 12), st.data())
def test_windows_cover_each_token_once(tokens: list[int], context: int, data: st.DataObject):
    stride = data.draw(st.integers(1, context))
    windows = Windows.of(np.array(tokens), context, stride)
    seen = [[0] * n for n in tokens]
    for document, start, length, scored in zip(
        windows.document, windows.start, windows.length, windows.scored, strict=True
    ):
        assert 1 <= scored <= length <= context
        assert scored == length if start == 0 else length - scored == context - stride
        for position in range(start + length - scored, start + length):
            seen[document][position] += 1
    assert seen == [[1] * n for n in tokens]
    batches = list(windows.batches(4 * context))
    assert sum(len(batch.length) for batch in batches) == len(windows.length)
    assert all(len(batch.length) * batch.length.max() <= 4 * context for batch in batches)
    lengths = np.concatenate([batch.length for batch in batches])
    assert (np.diff(lengths) <= 0).all(), "windows of like length stand together"


@pytest.mark.parametrize("config", [DENSE, SHARED], ids=["dense", "shared"])
def test_a_model_is_scored_in_chunks_as_at_once(config: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    chosen, model = choose(found_in(some_texts([30, 20, 9])), 10_000), a_model(config)
    wanted = score_documents(model, chosen, 4).nll
    monkeypatch.setattr("bam_core.evaluate.perplexity.VALUES_PER_CHUNK", 1)
    monkeypatch.setattr("bam_core.evaluate.perplexity.LEAST_CHUNK", 5)
    assert np.allclose(score_documents(model, chosen, 4).nll, wanted, atol=1e-11, rtol=0)


def test_losses_are_made_in_chunks_without_a_trace_of_it(monkeypatch: pytest.MonkeyPatch):
    model = a_model(DENSE).float()
    generator = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(15, 16, generator=generator)
    targets_N = torch.randint(VOCAB, (15,), generator=generator)
    whole = token_nll(model, hidden_ND, targets_N)
    made: list[int] = []
    logits = model.logits

    def counted(hidden: Tensor, mix: Tensor | None = None) -> Tensor:
        made.append(len(hidden))
        return logits(hidden, mix)

    monkeypatch.setattr(model, "logits", counted)
    monkeypatch.setattr("bam_core.evaluate.perplexity.VALUES_PER_CHUNK", 4 * VOCAB)
    monkeypatch.setattr("bam_core.evaluate.perplexity.LEAST_CHUNK", 3)
    assert torch.allclose(token_nll(model, hidden_ND, targets_N), whole, atol=1e-5, rtol=0)
    assert made == [4, 4, 4, 3]
    wanted = -logits(hidden_ND).double().log_softmax(-1).gather(-1, targets_N[:, None]).squeeze(-1)
    assert torch.allclose(whole.double(), wanted, atol=1e-4)
    assert token_nll(model.bfloat16(), hidden_ND.bfloat16(), targets_N).dtype == torch.float32


def test_the_token_average_counts_tokens_not_domains():
    scores = {"a": DomainScore(2.0, 300, 1), "b": DomainScore(4.0, 100, 1)}
    assert token_average_nll(scores) == 2.5
    assert scores["a"].bits_per_byte == pytest.approx(600 / log(2))


def test_only_a_cut_document_is_still_a_document():
    only = found_in(some_texts([9]), seq_len=9)
    assert only.cut
    assert choose(only, 100).tokens.tolist() == [9]
    two = found_in(some_texts([9, 9]), seq_len=9)
    assert two.cut
    assert choose(two, 100).numbers.tolist() == [0]
