"""What is there: the lineage of an artifact, a model's folder, and its words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bam_core.errors import UsageError
from bam_core.graph import refs
from pipelines.wiring.origins import name_of, whole_folder
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.graph.lineage import Graph


def lineage(ref: str, settings: Settings, direction: Literal["up", "down", "both"]) -> Graph:
    """Also of what was adopted, in the store where it was made. Raises UsageError unless `ref` names one artifact."""
    from bam_core.graph.lineage import lineage as graph_of
    from infra.adopting import foreign_records

    store = open_store(settings)
    records = store.records()
    root = refs.resolve(ref, records)
    return graph_of(records, root.key, direction, foreign_records(store, records))


def generate(
    ref: str,
    prompt: str,
    settings: Settings,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue `prompt` with a model. Raises UsageError if `ref` is none that reads text."""
    _, folder = reading_folder(ref, settings)
    import torch

    from bam_core.checkpoint import load_model
    from bam_core.data.tokenize import Tokenizer
    from bam_core.nn.generate import generate as continue_tokens

    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tokens = torch.tensor([tokenizer.eos_id, *tokenizer.encode_batch([prompt])[0]])
    model = load_model(folder).eval()
    sampling = {"temperature": temperature, "top_p": top_p}
    new = continue_tokens(model, tokens, max_new_tokens, **sampling, seed=seed, eos_id=tokenizer.eos_id)
    return tokenizer.decode(new)


def model_folder(ref: str, settings: Settings) -> tuple[str, Path]:
    """`stage@key12` of a model, and a local folder with its files.

    Raises UsageError if `ref` is no model, ArtifactDamaged if a file of it has other bytes than recorded.
    """
    store = open_store(settings)
    record = refs.resolve(ref, store.records())
    if not any(output.path == "config.json" for output in record.outputs):
        raise UsageError(f"{ref}: {record.stage} makes no model; try one of seed, expert.*, train.*")
    return name_of(record.ref), whole_folder(store, record)


def reading_folder(ref: str, settings: Settings) -> tuple[str, Path]:
    """As `model_folder`, of a model that reads text. Raises UsageError if it has no tokenizer."""
    name, folder = model_folder(ref, settings)
    require_tokenizer(name, folder)
    return name, folder


def require_tokenizer(name: str, folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{name}: has no tokenizer.json, so it reads no text; give a model that was made with one")
