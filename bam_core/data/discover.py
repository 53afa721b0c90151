"""Domains in text that has no labels: its documents divided among clusters, by the words that they use.

Source: c-BTM (arXiv 2303.14177), 3.1: tf-idf, singular vectors, balanced k-means. There every document counts once;
here, unless asked otherwise, by its bytes: experts are trained on text, and one kind of document may be a hundred times
as long as another.

A document is known by its number, from 0, in the order in which the source is read, which depends on its content only.
What is empty, and what differs from an earlier document in case and white space only, is in no cluster: a copy must not
be in two domains. What was assigned is stored, and decides: another machine's rounding would divide text a little
differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bam_core.data.balanced import Clusters, balanced_kmeans, capacity, silhouette
from bam_core.data.text import content_digest
from bam_core.data.tfidf import TfIdf, principal, tf_idf
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.protocols import Document

CLUSTERS_FILE = "clusters.parquet"
N_TERMS = 12
"""Words that a cluster is described by."""

Balance = Literal["bytes", "documents"]


@dataclass(frozen=True)
class Discovery:
    """documents: numbers of those that are in a cluster, [N]. clusters: of these. report: what people want to know."""

    documents: NDArray[np.int64]
    clusters: Clusters
    report: dict[str, Any]

    def write(self, path: Path) -> None:
        """One row per document: its number, its cluster, and its distance from the cluster's centre."""
        columns = {"document": self.documents, "cluster": self.clusters.assigned, "distance": self.clusters.distance}
        pq.write_table(pa.table(columns), path)


def discover(
    texts: Iterable[str],
    n: int,
    *,
    features: int,
    dims: int,
    seed: int,
    balance: Balance = "bytes",
) -> Discovery:
    """Divide documents into `n` clusters that have equally much text each. Reads the texts once and keeps none.

    Raises InvalidInput where there are fewer documents than clusters, or no words to tell them by.
    """
    reader = _Distinct()
    found = tf_idf(reader.read(texts), features, enough=lambda n_documents: _require(n_documents, n))
    sizes = np.array(reader.sizes, np.int64)
    points = principal(found.rows, dims, seed)
    weights = sizes if balance == "bytes" else np.ones_like(sizes)
    clusters = balanced_kmeans(points, weights, n, seed)
    inside = silhouette(points, clusters)
    report = {
        "n": n,
        "balance": balance,
        "capacity": capacity(weights, n),
        "documents": len(sizes),
        "bytes": int(sizes.sum()),
        "empty_dropped": reader.n_empty,
        "duplicates_dropped": reader.n_duplicates,
        "without_words": int((np.diff(found.rows.starts) == 0).sum()),
        "words": len(found.words),
        "dims": points.shape[1],
        "silhouette": float(np.average(inside, weights=weights)),
        "clusters": [
            {
                "documents": int((clusters.assigned == index).sum()),
                "bytes": int(sizes[clusters.assigned == index].sum()),
                "silhouette": float(
                    np.average(inside[clusters.assigned == index], weights=weights[clusters.assigned == index])
                ),
                "terms": terms,
            }
            for index, terms in enumerate(_terms(found, clusters, weights))
        ],
    }
    return Discovery(np.array(reader.numbers, np.int64), clusters, report)


def _require(n_documents: int, n: int) -> None:
    if n_documents < n:
        expected = f"cannot be divided into {n} clusters"
        raise InvalidInput("text", [Problem("documents", n_documents, expected, "ask for fewer, or give it more text")])


@dataclass
class _Distinct:
    """What was seen of the documents that went by, without their texts."""

    numbers: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    n_empty: int = 0
    n_duplicates: int = 0

    def read(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts with something in them, each once."""
        seen: set[bytes] = set()
        for number, text in enumerate(texts):
            if not text.strip():
                self.n_empty += 1
            elif (digest := content_digest(text)) in seen:
                self.n_duplicates += 1
            else:
                seen.add(digest)
                self.numbers.append(number)
                self.sizes.append(len(text.encode()))
                yield text


def _terms(found: TfIdf, clusters: Clusters, weights: NDArray[np.int64]) -> list[list[str]]:
    """For each cluster the words whose mean tf-idf in it is furthest above that in all text."""
    rows, shape = found.rows, (clusters.n, found.rows.n_columns)
    sums = np.zeros(shape)
    np.add.at(sums, (clusters.assigned[rows.row_of], rows.columns), rows.values * weights[rows.row_of])
    per_cluster = np.bincount(clusters.assigned, weights, minlength=clusters.n)
    above = sums / per_cluster[:, None] - sums.sum(axis=0) / per_cluster.sum()
    best = np.argsort(-above, axis=1, kind="stable")[:, :N_TERMS]
    return [[found.words[word] for word in row if above[index, word] > 0] for index, row in enumerate(best)]


def of_cluster(path: Path, index: int, documents: Iterable[Document]) -> Iterator[Document]:
    """Those of a text's documents that are in a cluster. path: what `Discovery.write` wrote of the same text.

    Raises ArtifactDamaged if it cannot be read.
    """
    try:
        table = pq.read_table(path, columns=["document", "cluster"])
    except (pa.ArrowException, OSError) as error:
        raise ArtifactDamaged(f"{path}: is no table of documents and their clusters ({error})") from error
    chosen = table.column("document").to_numpy()[table.column("cluster").to_numpy() == index]
    wanted = set(chosen.tolist())
    return (document for number, document in enumerate(documents) if number in wanted)
