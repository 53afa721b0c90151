"""Texts in a bucket: by URI, by glob, packed; the same text as on a disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_kit import S3Server

from bam_core.errors import InvalidInput
from infra.sources import TextSources
from infra.storage import open_filesystem

SOURCES = TextSources()


def test_globs_of_a_bucket_are_read_packed_or_not(s3: S3Server, tmp_path: Path) -> None:
    line = {name: json.dumps({"body": f"text {name}"}).encode() for name in "abc"}
    pq.write_table(pa.table({"body": ["text p"]}), tmp_path / "p.parquet")
    files = {
        "texts/a.jsonl": line["a"],
        "texts/b.jsonl.gz": gzip.compress(line["b"], mtime=0),
        "texts/c.jsonl.zst": pa.compress(line["c"], "zstd", asbytes=True),
    }
    fs, root = open_filesystem(s3.uri())
    for name, data in files.items():
        fs.pipe_file(f"{root}/{name}", data)
        (tmp_path / name.rpartition("/")[2]).write_bytes(data)
    fs.put_file(str(tmp_path / "p.parquet"), f"{root}/texts/p.parquet")
    there = {"kind": "jsonl", "path": s3.uri("texts/*.jsonl*"), "column": "body"}
    here = there | {"path": f"{tmp_path}/*.jsonl*"}
    assert sorted(d.text for d in SOURCES.read(there)) == ["text a", "text b", "text c"]
    assert SOURCES.digest(there) == SOURCES.digest(here)
    mixed = there | {"path": [s3.uri("texts/a.jsonl"), f"{tmp_path}/b.jsonl.gz"]}
    assert sorted(d.text for d in SOURCES.read(mixed)) == ["text a", "text b"]
    table = {"kind": "parquet", "path": s3.uri("texts/*.parquet"), "template": "<{body}>"}
    assert [d.text for d in SOURCES.read(table)] == ["<text p>"]
    with pytest.raises(InvalidInput, match="matches no file"):
        SOURCES.digest(there | {"path": s3.uri("texts/*.csv")})
    s3.fail("cut", "GET", "a.jsonl", times=1)
    assert SOURCES.digest(there) == SOURCES.digest(here), "a connection that is cut is tried again"
