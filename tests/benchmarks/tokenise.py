"""`python -m tests.benchmarks.tokenise`: text to packed rows in Arrow files, beside `datasets.map`.

Both read the same documents, tokenise them with the same tokenizer, pack rows of 256 tokens and write them as Arrow;
each domain by itself, as a stage `data.<domain>` does. `datasets` is measured with as many processes as there are
workers, and in one process whose tokenizer has as many threads; the faster of the two in each round counts. The result
is `.bench/tokenise.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import entry, interleaved, ratios

TEXT = Path(__file__).parents[3] / "shared" / "data"
DOMAINS = ("general", "code", "law", "math")
SEQ_LEN = 256
VOCABULARY = 4096


def texts_of(folder: Path, n_bytes: int) -> dict[str, list[str]]:
    """The first documents of each domain, about `n_bytes` of each."""
    found = {}
    for domain in DOMAINS:
        texts: list[str] = []
        left = n_bytes
        for line in (folder / domain / "train.jsonl").open(encoding="utf-8"):
            if left <= 0:
                break
            texts.append(json.loads(line)["text"])
            left -= len(texts[-1])
        found[domain] = texts
    return found


def ours(texts: Mapping[str, Sequence[str]], definition: str, out: Path) -> None:
    """What the stage `data.<domain>` does with the documents that it keeps."""
    from bam_core.data.packing import pack
    from bam_core.data.shards import write_shards
    from bam_core.data.tokenize import Tokenizer
    from bam_core.data.words import encoded

    shutil.rmtree(out, ignore_errors=True)
    for domain, documents in texts.items():
        tokenizer = Tokenizer(definition)
        ids = encoded(documents, tokenizer)
        write_shards(out / domain, pack(ids, SEQ_LEN, tokenizer.eos_id, tokenizer.token_bytes))


def rows_of(batch: Mapping[str, Sequence[str]], tokenizer: Any, eos_id: int) -> dict[str, Any]:
    """One call of `map`: the batch's documents one after another, in rows; what does not fill a row is dropped."""
    stream = [eos_id]
    for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False):
        stream += encoding.ids
        stream.append(eos_id)
    n_rows = (len(stream) - 1) // SEQ_LEN
    ids = np.asarray(stream, np.uint16)
    return {"tokens": [ids[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(n_rows)]}


def theirs(stored: Mapping[str, Path], definition: str, out: Path, processes: int | None) -> None:
    import datasets
    import tokenizers

    shutil.rmtree(out, ignore_errors=True)
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    tokenizer.encode_special_tokens = True
    call = partial(rows_of, tokenizer=tokenizer, eos_id=tokenizer.token_to_id("<|endoftext|>"))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=SEQ_LEN + 1)})
    for domain, folder in stored.items():
        (out / domain).mkdir(parents=True)
        datasets.load_from_disk(str(folder)).map(
            call,
            batched=True,
            batch_size=256,
            num_proc=processes,
            remove_columns=["text"],
            features=features,
            load_from_cache_file=False,
            cache_file_name=str(out / domain / "rows.arrow"),
        )


def measure(texts: Mapping[str, Sequence[str]], root: Path, workers: int, rounds: int) -> dict[str, list[float]]:
    import datasets

    from bam_core.data.tokenize import train_bpe

    datasets.disable_progress_bars()
    definition = train_bpe((text for documents in texts.values() for text in documents[::8]), VOCABULARY)
    stored = {domain: root / "text" / domain for domain in texts}
    for domain, documents in texts.items():
        datasets.Dataset.from_dict({"text": documents}).save_to_disk(str(stored[domain]))
    works = {
        "ours": lambda: ours(texts, definition, root / "ours"),
        "datasets, processes": lambda: theirs(stored, definition, root / "processes", workers),
        "datasets, threads": lambda: theirs(stored, definition, root / "threads", None),
    }
    return interleaved(works, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mb", type=float, default=3.0, help="text of each domain")
    parser.add_argument("--text", type=Path, default=TEXT, help="a folder of DOMAIN/train.jsonl")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)  # of the tokenizer, before it is loaded
    texts = texts_of(options.text, int(1e6 * options.mb))
    megabytes = sum(len(text.encode()) for documents in texts.values() for text in documents) / 1e6
    with tempfile.TemporaryDirectory(prefix="bam-bench-") as folder:
        times = measure(texts, Path(folder), options.workers, options.rounds)
    best = list(map(min, times["datasets, processes"], times["datasets, threads"]))
    found = ratios(best, times["ours"])
    for name, seconds in times.items():
        print(f"{name:<24}{megabytes / statistics.median(seconds):>8.1f} MB/s")
    print(f"ours over the faster of the other two {statistics.median(found):.2f}")
    figures = {"workers": options.workers, "megabytes": megabytes, "seconds": times}
    note = f"{options.workers} workers, {megabytes:.0f} MB of text"
    table = [entry("tokenise_over_datasets", found, "ratio", note)]
    write_result("tokenise", {**figures, "table": table}, options.out)


if __name__ == "__main__":
    main()
