"""A file that describes a cluster, and the calibrations of its nodes, for a forecast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bam_core.errors import InvalidInput, Problem, UsageError
from bam_core.planner.calibration import Calibration
from bam_core.planner.cluster import NodeKind, read_cluster


def open_cluster(file: Path, calibration: Path | None = None) -> tuple[tuple[NodeKind, ...], dict[str, Calibration]]:
    """The nodes of a cluster file, and for each kind what it does in a second. calibration: of kinds that name none.

    Raises InvalidInput with all that is wrong.
    """
    kinds = read_cluster(_document(file), str(file))
    found, problems = {}, []
    for place, kind in enumerate(kinds):
        path = file.parent / kind.calibration if kind.calibration else calibration
        key = f"nodes.{place}.calibration"
        if path is None:
            remedy = "make one there with `bam doctor --calibrate --out FILE`; --calibration FILE is for all kinds"
            problems.append(Problem(key, None, "is missing", remedy))
            continue
        try:
            found[kind.name] = Calibration.from_json(json.loads(path.read_text()), str(path))
        except OSError as error:
            problems.append(Problem(key, str(path), f"cannot be read: {error.strerror}"))
        except ValueError as error:
            problems.append(Problem(key, str(path), f"is not JSON: {error}"))
        except InvalidInput as error:
            problems += [problem.under(key) for problem in error.problems]
    if problems:
        raise InvalidInput(str(file), problems)
    return kinds, found


def _document(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"--on {file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--on {file}: is not YAML: {str(error).splitlines()[0]}") from error
