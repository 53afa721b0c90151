"""`overlap` on packed rows: what was planted is found, counted, refused or allowed, and told in the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bam_core.data.packing import pack
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.data.tokenize import SMALLEST_VOCABULARY, Tokenizer, train_bpe
from bam_core.errors import InvalidInput
from bam_core.evaluate.documents import Documents
from bam_core.graph.stage import Resources
from bam_core.protocols import StageContext
from pipelines.report import ReportInputs, build_report
from pipelines.report.overlap import overlap_caveats, overlap_table
from pipelines.stages import overlap
from tests.report.fakes import fake_run

SEQ_LEN = 16


def document(number: int, n_words: int = 30) -> str:
    """Words that no other document has."""
    return " ".join(f"w{number}x{place}" for place in range(n_words))


TRAIN = {"a": [document(n) for n in range(20)], "b": [document(100 + n) for n in range(20)]}
VALID = {"a": [document(50 + n) for n in range(10)], "b": [document(150 + n) for n in range(10)]}
LIMITS = {"max_overlap": 0.5, "max_contaminated": 0.05, "allow_overlap": False}


class Files:
    def read_file(self, path: str) -> bytes:
        return Path(path).read_bytes()


Texts = Mapping[str, Sequence[str]]


def run(
    folder: Path, train: Texts, valid: Texts, tasks: Sequence[bytes] = (), limit: int | None = None, **limits: Any
) -> dict[str, Any]:
    """What the stage leaves. tasks: contents of task files."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(train_bpe([], SMALLEST_VOCABULARY))
    tokenizer = Tokenizer.load(folder / "tokenizer" / "tokenizer.json")
    for domain in valid:
        for part, texts in (("train", train[domain]), ("valid", valid[domain])):
            # A last document that the rows cut, so that all others are whole.
            ids = tokenizer.encode_batch([*texts, "!" * 2 * SEQ_LEN])
            write_shards(folder / f"data.{domain}" / part, pack(ids, SEQ_LEN, tokenizer.eos_id, tokenizer.token_bytes))
    inputs = {path.name: path for path in folder.iterdir()}
    out, files, asked = folder / "out", {}, []
    out.mkdir()
    for number, data in enumerate(tasks):
        path, digest = folder / f"{number}.jsonl", hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        files[digest] = {"path": str(path)}
        asked.append({"digest": digest, "limit": limit})
    config = {"domains": list(valid), **LIMITS, **limits, **({"tasks": asked} if asked else {})}
    context = StageContext(
        "overlap",
        "k" * 64,
        config,
        {"tasks": files},
        Resources(),
        inputs,
        {},
        out,
        None,
        Files(),
        list,  # type: ignore
    )
    metrics = overlap.run(context)
    return json.loads((out / "overlap.json").read_text()) | {"metrics": metrics}


def test_text_that_was_not_trained_on_has_no_overlap(tmp_path):
    result = run(tmp_path / "x", TRAIN, VALID)
    for domain in ("a", "b"):
        its = result["domains"][domain]
        assert (its["documents"], its["duplicates"], its["contaminated"]) == (11, 0, 0)
        assert (its["mean_share"], its["by_training"], its["examples"]) == (0.0, {"a": 0.0, "b": 0.0}, [])
    assert result["limits"] == {"max_overlap": 0.5, "max_contaminated": 0.05}
    assert result["metrics"]["contaminated.a"] == 0


def test_planted_overlap_is_counted_in_every_domain_and_refused(tmp_path):
    """A copy in other case, a text within another, and 18 of 42 runs: in the training text of the other domain."""
    valid = VALID | {"a": [*VALID["a"], "Copied, as A WHOLE. ", document(60), document(61, 54)]}
    train = TRAIN | {"b": [*TRAIN["b"], "copied as a whole", f"before {document(60)} behind", document(61, 30)]}
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path / "x", train, valid)
    [problem] = caught.value.problems
    assert (problem.path, problem.value) == ("domains.a", "2 of 14 held-out documents")
    assert "document 10 (100%): 'Copied, as A WHOLE.'" in problem.expected
    assert "document 11 (100%): 'w60x0 w60x1" in problem.expected
    assert "document 12" not in problem.expected
    assert "as a whole (1); at most 5% of them may" in problem.expected
    assert "evaluate.allow_overlap: true" in problem.remedy
    assert (tmp_path / "x" / "out" / "overlap.json").is_file()

    result = run(tmp_path / "y", train, valid, allow_overlap=True)
    its = result["domains"]["a"]
    assert (its["documents"], its["duplicates"], its["contaminated"]) == (14, 1, 2)
    assert [(e["document"], e["share"], e["duplicate_of"]) for e in its["examples"]] == [
        (10, 1.0, "b"),
        (11, 1.0, None),
        (12, 18 / 42, None),
    ]
    assert its["by_training"]["a"] == 0.0
    assert its["by_training"]["b"] == (18 + 18) / (10 * 18 + 18 + 42)
    assert its["mean_share"] == pytest.approx((1 + 1 + 18 / 42) / 14)
    assert result["domains"]["b"]["contaminated"] == 0
    assert result["allowed"] is True


@pytest.mark.parametrize(("limits", "n"), [({"max_contaminated": 0.2}, 2), ({"max_overlap": 0.4}, 3)])
def test_the_limits_are_the_recipes(tmp_path, limits, n):
    valid = VALID | {"a": [*VALID["a"], "copied as a whole", document(60), document(61, 54)]}
    train = TRAIN | {"b": [*TRAIN["b"], "copied as a whole", f"before {document(60)} behind", document(61, 30)]}
    result = run(tmp_path / "x", train, valid, **({"max_contaminated": 0.25} | limits))
    assert result["domains"]["a"]["contaminated"] == n


def test_numbers_are_those_that_evaluate_gives(tmp_path):
    run(tmp_path / "x", TRAIN, VALID)
    tokenizer = Tokenizer.load(tmp_path / "x" / "tokenizer" / "tokenizer.json")
    rows = ShardedRows(tmp_path / "x" / "data.a" / "valid")
    documents = Documents.of(rows, tokenizer.token_bytes)
    texts = list(overlap._whole(tokenizer, tmp_path / "x" / "data.a" / "valid"))
    assert texts[:10] == VALID["a"]
    assert len(texts) == len(documents) == 11
    assert set(texts[10]) == {"!"}


def test_a_long_training_document_is_read_in_parts_and_nothing_is_lost_between_them(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "TOKENS_AT_ONCE", 400)
    monkeypatch.setattr(overlap, "SHARED_TOKENS", 200)
    long = " ".join(document(number) for number in range(40))
    held_out = [" ".join(long.split()[start : start + 60]) for start in range(0, 1100, 97)]
    result = run(tmp_path / "x", {"a": [long, *TRAIN["b"]]}, {"a": held_out}, allow_overlap=True)
    assert result["domains"]["a"]["contaminated"] == len(held_out)
    assert {example["share"] for example in result["domains"]["a"]["examples"]} == {1.0}


def test_batches_hold_all_documents_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "TOKENS_AT_ONCE", 700)
    run(tmp_path / "x", TRAIN, VALID)
    tokenizer = Tokenizer.load(tmp_path / "x" / "tokenizer" / "tokenizer.json")
    batches = list(overlap._batches(tokenizer, tmp_path / "x" / "data.a" / "train"))
    assert len(batches) > 2
    assert [text for texts, whole in batches for text in texts][:20] == TRAIN["a"]
    assert all(whole for _, whole in batches)


def items(*questions: str) -> bytes:
    shared = {"task": "quiz", "domain": "a", "kind": "mc", "choices": [" no", " yes"], "answer": 1}
    return b"".join(
        json.dumps(shared | {"id": str(number), "prompt": question}).encode() + b"\n"
        for number, question in enumerate(questions)
    )


def test_items_of_tasks_are_looked_for_with_their_right_answers(tmp_path):
    train = TRAIN | {"b": [*TRAIN["b"], document(70) + " YES", document(71) + " no"]}
    data = items(document(70), document(71), document(72))
    result = run(tmp_path / "x", train, VALID, [data], allow_overlap=True)
    its = result["tasks"]["quiz"]
    assert (its["documents"], its["duplicates"], its["contaminated"]) == (3, 1, 2)
    assert [example["share"] for example in its["examples"]] == [1.0, 18 / 19]
    with pytest.raises(InvalidInput, match=r"tasks\.quiz: '2 of 3 items'"):
        run(tmp_path / "y", train, VALID, [data])
    assert run(tmp_path / "z", train, VALID, [items(document(72), document(70))], limit=1)["tasks"]["quiz"] == {
        **{"documents": 1, "duplicates": 0, "contaminated": 0, "mean_share": 0.0},
        **{"by_training": {"a": 0.0, "b": 0.0}, "examples": []},
    }


# the report


def figures(contaminated: int, **shares: float) -> dict[str, Any]:
    return {
        **{"documents": 40, "duplicates": 1, "contaminated": contaminated, "mean_share": 0.0312},
        **{"by_training": shares, "examples": []},
    }


FOUND = {
    "run_words": 13,
    "limits": {"max_overlap": 0.5, "max_contaminated": 0.05},
    "allowed": True,
    "domains": {"general": figures(2, general=0.002, law=0.013), "law": figures(3, general=0.0, law=0.0)},
    "tasks": {"gsm8k": figures(0)},
}


def test_the_table_says_where_most_of_it_is():
    rows = overlap_table(fake_run(overlap=FOUND)).rows
    assert [row["held_out"] for row in rows] == ["general", "law", "task gsm8k"]
    assert (rows[0]["most_in"], rows[0]["most_in_share"]) == ("law", 0.013)
    assert "most_in" not in rows[1]
    assert overlap_table(fake_run()).rows == ()


def test_what_was_allowed_is_said_at_the_top():
    assert [str(caveat) for caveat in overlap_caveats(fake_run(overlap=FOUND))] == [
        "3 of the 40 held-out documents of law are in training text to a large part: "
        'see <a href="#overlap">Overlap</a>.'
    ]
    assert list(overlap_caveats(fake_run())) == []


def page_of(folder: Path, inputs: ReportInputs) -> Iterator[str]:
    build_report(inputs, folder)
    yield (folder / "report.html").read_text()
    yield from (path.read_text() for path in [folder / "tables" / "overlap.csv"] if path.exists())


def test_the_report_has_a_section_of_it_if_it_was_counted(tmp_path):
    page, csv = page_of(tmp_path / "with", fake_run(overlap=FOUND))
    assert 'href="#overlap"' in page
    assert "1.3%" in page
    assert "here more is allowed" in page
    assert csv.splitlines()[1] == "general,40,1,2,0.0312,law,0.013"
    [page] = page_of(tmp_path / "without", fake_run())
    assert "overlap" not in page
