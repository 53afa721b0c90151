"""Planted kinds of text are found, whatever else holds: balance, one start and another, documents that disappoint."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bam_core.data import balanced
from bam_core.data.balanced import assign, balanced_kmeans, capacity, silhouette
from bam_core.data.discover import CLUSTERS_FILE, Discovery, discover, of_cluster
from bam_core.data.tfidf import Rows, principal, tf_idf
from bam_core.errors import ArtifactDamaged, InvalidInput
from bam_core.protocols import Document

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""
CLOSE = 0.05
"""Of cosines: what is left of the other directions after two power iterations, with a gap behind the fourth."""
ORDERS = np.array(sorted(set(itertools.permutations((0, 0, 1, 1, 2, 2, 3, 3)))))
"""All ways to put 8 points into 4 clusters of 2."""
KINDS = ("ruby", "laws", "bake", "seas")


def planted(n_kinds: int, per_kind: int, foreign_frac: float, seed: int = 0) -> tuple[list[str], list[int]]:
    """Documents of 60 words, `foreign_frac` of them of any kind; and which kind each is of."""
    random = np.random.default_rng(seed)
    documents, labels = [], []
    for number in range(n_kinds * per_kind):
        kind = number % n_kinds
        kinds = np.where(random.random(60) < foreign_frac, random.integers(0, n_kinds, 60), kind)
        words = [f"{KINDS[k]}{chr(97 + random.integers(26))}{chr(97 + random.integers(4))}" for k in kinds]
        documents.append(" ".join(words))
        labels.append(kind)
    return documents, labels


def adjusted_rand_index(one: Sequence[int], other: Sequence[int]) -> float:
    """Of Hubert and Arabie, 1985, by its definition: pairs of points that are together in both."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    together = [np.array([labels[i] == labels[j] for i, j in pairs]) for labels in (one, other)]
    index, expected = (together[0] & together[1]).sum(), together[0].sum() * together[1].sum() / len(pairs)
    return float((index - expected) / ((together[0].sum() + together[1].sum()) / 2 - expected))


def divide(texts: Sequence[str], n: int, **options: object) -> Discovery:
    return discover(texts, n, **{"features": 1000, "dims": 20, "seed": 0, **options})  # type: ignore[arg-type]


# planted kinds


@pytest.mark.parametrize("balance", ["bytes", "documents"])
@pytest.mark.parametrize("seed", range(3))
def test_kinds_without_a_common_word_are_found_exactly(balance, seed):
    texts, labels = planted(4, 30, foreign_frac=0.0)
    found = divide(texts, 4, balance=balance, seed=seed)
    assert adjusted_rand_index(labels, found.clusters.assigned.tolist()) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_kinds_that_share_half_their_words_are_found(seed):
    texts, labels = planted(4, 40, foreign_frac=0.5, seed=seed)
    assert adjusted_rand_index(labels, divide(texts, 4, seed=seed).clusters.assigned.tolist()) > 0.9


def test_few_long_documents_are_a_cluster_of_their_own_if_bytes_count():
    """What documents alone would not find: 6 long ones against 120 short ones."""
    texts, _ = planted(2, 60, foreign_frac=0.0)
    short = [" ".join(text.split()[:12]) for text in texts if text.startswith(KINDS[0])] * 1
    extra, _ = planted(1, 60, foreign_frac=0.0, seed=5)
    short += [" ".join(text.split()[:12]) for text in extra]
    long = [" ".join(itertools.islice(itertools.cycle(text.split()), 240)) for text in texts if KINDS[1] in text][:6]
    labels = [0] * len(short) + [1] * len(long)
    by_bytes = divide(short + long, 2).clusters.assigned.tolist()
    assert adjusted_rand_index(labels, by_bytes) == 1.0
    by_documents = divide(short + long, 2, balance="documents").clusters.assigned.tolist()
    assert adjusted_rand_index(labels, by_documents) < 0.5
    assert sorted(Counter(by_documents).values()) == [63, 63]


def test_a_cluster_is_described_by_the_words_of_its_kind():
    texts, labels = planted(3, 30, foreign_frac=0.3)
    texts = [text + 5 * " common" * (number % 10 < 4) for number, text in enumerate(texts)]
    found = divide(texts, 3)
    for index, cluster in enumerate(found.report["clusters"]):
        kind = labels[int(np.flatnonzero(found.clusters.assigned == index)[0])]
        assert len(cluster["terms"]) == 12
        assert all(term.startswith(KINDS[kind]) for term in cluster["terms"])
    assert found.report["silhouette"] > 0.3


def test_equal_text_is_divided_equally_and_another_seed_may_not():
    texts, _ = planted(4, 20, foreign_frac=0.8)
    one, two = divide(texts, 4), divide(iter(texts), 4)
    assert one.clusters.assigned.tolist() == two.clusters.assigned.tolist()
    assert one.clusters.distance.tolist() == two.clusters.distance.tolist()
    assert one.report == two.report


def test_cluster_0_is_the_one_in_the_middle():
    texts, _ = planted(4, 25, foreign_frac=0.0)
    mixed, _ = planted(4, 7, foreign_frac=1.0, seed=9)
    found = divide(texts + mixed * 1, 4)
    centre = np.average(found.clusters.centroids, axis=0)
    gaps = np.linalg.norm(found.clusters.centroids - centre, axis=1)
    assert gaps.argmin() == 0


# documents that disappoint


def test_empty_documents_and_copies_are_in_no_cluster_and_numbers_are_those_of_the_source(tmp_path):
    texts, labels = planted(2, 10, foreign_frac=0.0)
    source = ["", *texts[:5], " \n", texts[0].upper(), *texts[5:], texts[3].replace(" ", "\n")]
    found = divide(source, 2)
    assert found.documents.tolist() == [1, 2, 3, 4, 5, *range(8, 8 + 15)]
    assert (found.report["empty_dropped"], found.report["duplicates_dropped"]) == (2, 2)
    assert adjusted_rand_index(labels, found.clusters.assigned.tolist()) == 1.0
    found.write(tmp_path / CLUSTERS_FILE)
    table = pq.read_table(tmp_path / CLUSTERS_FILE).to_pydict()
    assert table["document"] == found.documents.tolist()
    documents = [Document(text, str(number)) for number, text in enumerate(source)]
    parts = [list(of_cluster(tmp_path / CLUSTERS_FILE, index, documents)) for index in range(2)]
    assert sorted(document.text for part in parts for document in part) == sorted(texts)
    assert all(len({text.text[:3] for text in part}) == 1 for part in parts)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], r"documents: 0: cannot be divided into 2 clusters"),
        (["one document"], r"documents: 1: cannot be divided into 2 clusters .ask for fewer"),
        (["a copy of it", "A copy of it ", ""], r"documents: 1: cannot be divided"),
        (["one", "two", "three"], r"documents: 3: no word is in 2 documents and at most half of them"),
        (["!?", "...", "{}", "()"], r"documents: 4: no word"),
    ],
)
def test_what_cannot_be_divided_is_named(texts, problem):
    with pytest.raises(InvalidInput, match=problem):
        divide(texts, 2)


def test_documents_without_words_are_counted_and_go_where_there_is_room():
    texts, labels = planted(2, 10, foreign_frac=0.0)
    found = divide([*texts, "!!!", "???"], 2)
    assert found.report["without_words"] == 2
    assert adjusted_rand_index(labels, found.clusters.assigned.tolist()[:20]) == 1.0


def test_a_table_that_is_none_is_named(tmp_path):
    (tmp_path / CLUSTERS_FILE).write_bytes(b"PAR1")
    for path in (tmp_path / CLUSTERS_FILE, tmp_path / "none"):
        with pytest.raises(ArtifactDamaged, match="documents and their clusters"):
            of_cluster(path, 0, [])


# tf-idf and its directions


def test_tf_idf_is_scikit_learns():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts, _ = planted(3, 12, foreign_frac=0.4)
    own = tf_idf(texts, 10_000)
    theirs = text.TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, token_pattern=r"[^\W\d_]+")
    expected = theirs.fit_transform(texts).toarray()
    assert list(own.words) == theirs.get_feature_names_out().tolist()
    np.testing.assert_allclose(own.rows.times(np.eye(len(own.words))), expected, rtol=1e-12)


def test_numbers_are_one_word_and_case_does_not_count():
    found = tf_idf(["Law 12", "law 3 of", "of x", "y z", "q", "r"], 100)
    assert found.words == ("0", "law", "of")


def test_the_commonest_words_are_kept_in_any_order_of_documents():
    texts = ["a b c", "a b d", "a e f", "e g", "h i", "j k", "l m", "n o"]
    assert tf_idf(texts, 2).words == tf_idf(texts[::-1], 2).words == ("a", "b")


def test_directions_are_those_of_the_exact_decomposition():
    texts, _ = planted(4, 20, foreign_frac=0.1)
    rows = tf_idf(texts, 1000).rows
    dense = rows.times(np.eye(rows.n_columns))
    left, sizes, _ = np.linalg.svd(dense)
    exact = left[:, :4] * sizes[:4]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found = principal(rows, 4, seed=3)
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, atol=CLOSE)  # up to a rotation
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0)
    assert principal(rows, 1000, seed=3).shape[1] <= len(texts)


@CALM
@given(hnp.arrays(np.float64, (5, 7), elements=st.sampled_from([0.0, 0.0, 1.0, -2.0])))
def test_a_product_with_rows_is_the_dense_one(dense):
    row_of, columns = np.nonzero(dense)
    starts = np.searchsorted(row_of, np.arange(6))
    rows = Rows(starts, columns, dense[row_of, columns], 7)
    other = np.arange(21.0).reshape(7, 3)
    np.testing.assert_allclose(rows.times(other), dense @ other)
    np.testing.assert_allclose(rows.transposed().times(np.eye(5)), dense.T)


# balance


weighted = st.lists(st.integers(1, 50), min_size=3, max_size=40)


@CALM
@given(weights=weighted, n=st.integers(1, 3), data=st.data())
def test_no_cluster_is_heavier_than_the_capacity_and_none_is_empty(weights, n, data):
    points = data.draw(hnp.arrays(np.float64, (len(weights), 2), elements=st.sampled_from([0.0, 1.0, 2.5])))
    weights = np.array(weights)
    found = balanced_kmeans(points, weights, n, seed=0)
    loads = np.bincount(found.assigned, weights, minlength=n)
    assert loads.max() <= capacity(weights, n) < weights.sum() / n + weights.max()
    assert np.bincount(found.assigned, minlength=n).min() >= 1
    assert found.distance.shape == (len(weights),)


@CALM
@given(st.integers(1, 60), st.integers(1, 8))
def test_the_capacity_of_equal_weights_is_the_share_rounded_up(n_points, n):
    assert capacity(np.ones(n_points, np.int64), n) == -(-n_points // n)


@CALM
@given(hnp.arrays(np.float64, (6, 3), elements=st.floats(0, 1, width=16)))
def test_an_assignment_is_the_best_to_the_tolerance(costs):
    """Against all ways to put 6 points into 3 clusters of 2."""
    weights = np.ones(6, np.int64)
    found = costs[np.arange(6), assign(costs, weights)].sum()
    all_ways = [way for way in itertools.product(range(3), repeat=6) if max(Counter(way).values()) == 2]
    best = min(costs[np.arange(6), list(way)].sum() for way in all_ways)
    assert best - 1e-12 <= found <= best + 6 * balanced.TOLERANCE * costs.mean() + 1e-12


@pytest.mark.parametrize("seed", range(40))
def test_an_assignment_is_the_best_of_random_costs_with_two_full_clusters(seed):
    costs = np.random.default_rng(seed).random((8, 4)) + np.array([0.0, 0.3, 0.6, 0.9])
    found = costs[np.arange(8), assign(costs, np.ones(8, np.int64))].sum()
    best = costs[np.arange(8), ORDERS].sum(axis=1).min()
    assert best - 1e-12 <= found <= best + 8 * balanced.TOLERANCE * costs.mean()


def test_a_cluster_that_nobody_is_nearest_to_is_given_a_point():
    """4 points fit into 2 clusters of 2, and a domain without text is none."""
    costs = np.array([[0.0, 0.0, 1.0]] * 3 + [[0.0, 0.0, 0.5]])
    found = assign(costs, np.ones(4, np.int64))
    assert found[3] == 2
    assert sorted(Counter(found.tolist()).values()) == [1, 1, 2]


def test_points_that_are_all_the_same_are_divided_evenly():
    found = balanced_kmeans(np.ones((9, 2)), np.ones(9, np.int64), 3, seed=1)
    assert sorted(Counter(found.assigned.tolist()).values()) == [3, 3, 3]


def test_silhouette_tells_inside_from_between():
    points = np.array([[0.0], [0.2], [5.0], [9.8], [10.0]])
    found = balanced_kmeans(points, np.ones(5, np.int64), 2, seed=0)
    inside = silhouette(points, found)
    assert inside[[0, 1, 3, 4]].min() > 0.6
    assert abs(inside[2]) < 0.4
