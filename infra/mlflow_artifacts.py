"""Files of a run or a model in MLflow, by the address that MLflow gave it: it is not asked again for each file."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from bam_core.graph.record import Record
from infra.small_files import is_small

MODEL_FILES = ("config.json", "MODEL_CARD.md")
"""Small files of a model folder that go to the model's own page."""
_KEPT_IN_STORE = frozenset({"tokenizer.json", "model.safetensors.index.json"})


class Artifacts:
    """uri: as MLflow says where the files of a run or model are. Raises what MLflow raises."""

    def __init__(self, uri: str, tracking_uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._files = get_artifact_repository(uri, tracking_uri=tracking_uri)

    def add_outputs(self, record: Record, folder: Path) -> None:
        """What a person reads: tables, figures, the card, the report. Weights and shards stay in the store."""
        for output in record.outputs:
            if is_small(output) and output.path not in _KEPT_IN_STORE:
                parent = str(PurePosixPath(output.path).parent)
                self._files.log_artifact(str(folder / output.path), None if parent == "." else parent)

    def add_model_files(self, folder: Path) -> None:
        for name in MODEL_FILES:
            if (folder / name).is_file():
                self._files.log_artifact(str(folder / name), None)

    def add_text(self, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory(prefix="bam-") as folder:
            file = Path(folder, name)
            file.write_text(text, encoding="utf-8")
            self._files.log_artifact(str(file), None)
