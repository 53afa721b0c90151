"""The task files of a recipe, before anything runs: what identifies each, and all that is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bam_core.errors import InvalidInput, Problem
from bam_core.evaluate.task_files import Task, read_task
from infra.sources import TextSources
from pipelines.recipe import Recipe
from pipelines.texts import task_digest


def task_digests(recipe: Recipe, sources: TextSources) -> tuple[dict[str, str], list[Problem]]:
    """As `bam.build` wants them; then every file's faults, which name file and line."""
    digests, problems, named = {}, list[Problem](), dict[str, str]()
    for number, file in enumerate(recipe.evaluate.tasks):
        here = task_digest(number)
        try:
            data = sources.read_file(file.path)
        except InvalidInput as error:
            problems += [problem.under(here) for problem in error.problems]
            continue
        try:
            task = read_task(data, file.path)
        except InvalidInput as error:
            problems += error.problems
            continue
        digests[here] = hashlib.sha256(data).hexdigest()
        problems += _twice(task, here, file.path, named)
    return digests, problems


def read_tasks(paths: Sequence[str]) -> list[Task]:
    """The tasks of these files or URIs. Raises InvalidInput with all that is wrong with any."""
    sources, tasks, problems, named = TextSources(), [], list[Problem](), dict[str, str]()
    for path in paths:
        try:
            task = read_task(sources.read_file(path), path)
        except InvalidInput as error:
            problems += error.problems
            continue
        problems += _twice(task, path, path, named)
        tasks.append(task)
    if problems:
        raise InvalidInput("task files", problems)
    return tasks


def _twice(task: Task, here: str, path: str, named: dict[str, str]) -> list[Problem]:
    """Results go by a task's name. named: task -> its file, of those before."""
    if task.name not in named:
        named[task.name] = path
        return []
    expected = f"is task {task.name!r}, and so is {named[task.name]}"
    return [Problem(here, path, expected, "keep one, or give it another `task`")]
