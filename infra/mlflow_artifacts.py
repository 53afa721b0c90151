"""Files of a run or a model in MLflow, by the address that MLflow gave it: it is not asked again for each file."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from bam_core.graph.record import Record
from infra.small_files import is_small

CONFIG, CARD = "config.json", "MODEL_CARD.md"
"""Small files of a model folder that go to the model's own page."""
_KEPT_IN_STORE = frozenset({"tokenizer.json", "model.safetensors.index.json"})


def shown_card(text: str) -> str:
    """A card as MLflow's viewer can show it: it takes front matter for Markdown, so that comes last, in a fence."""
    head, marks, body = text.removeprefix("---\n").partition("\n---\n")
    return f"{body.strip()}\n\n```yaml\n{head}\n```\n" if text.startswith("---\n") and marks else text


class Artifacts:
    """uri: as MLflow says where the files of a run or model are. Raises what MLflow raises."""

    def __init__(self, uri: str, tracking_uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._files = get_artifact_repository(uri, tracking_uri=tracking_uri)

    def add_outputs(self, record: Record, folder: Path) -> None:
        """What a person reads: tables, figures, the card, the report. Weights and shards stay in the store."""
        for output in record.outputs:
            if output.path == CARD:
                self.add_text(CARD, shown_card((folder / CARD).read_text(encoding="utf-8")))
            elif is_small(output) and output.path not in _KEPT_IN_STORE:
                parent = str(PurePosixPath(output.path).parent)
                self._files.log_artifact(str(folder / output.path), None if parent == "." else parent)

    def add_model_files(self, folder: Path) -> None:
        if (folder / CONFIG).is_file():
            self._files.log_artifact(str(folder / CONFIG), None)
        if (folder / CARD).is_file():
            self.add_text(CARD, shown_card((folder / CARD).read_text(encoding="utf-8")))

    def add_text(self, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory(prefix="bam-") as folder:
            file = Path(folder, name)
            file.write_text(text, encoding="utf-8")
            self._files.log_artifact(str(file), None)
