"""Where shares follow the losses: measuring these, at the steps at which a segment begins.

All ranks make the same calls, each scores its part of the rows, and all end with the same bits: sums are over all
ranks, and rank 0's are taken. What was found is in the progress, so a resumed run does not measure it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray

from bam_core.config import TrainConfig
from bam_core.data.schedule import CountedMixture
from bam_core.errors import TrainingDiverged
from bam_core.nn.lm import LM
from bam_core.nn.losses import IGNORED, next_token_loss
from bam_core.protocols import TrainWorker
from bam_core.train.adapt import Segment, next_segment
from bam_core.train.parallel import micro_batches_of_rank, rows_of_rank, same_on_all_ranks, sum_over_ranks
from bam_core.train.state import Progress

References = Callable[[], Iterable[tuple[LM, Sequence[str]]]]
"""The models of comparison, opened one at a time, each with the domains that it is the measure of."""


class Judge:
    """Extends a mixture of domains while it is trained on.

    batches: of the phase, extended here. judged: rows [n, seq_len + 1] of each domain. references: where the rule
    compares. micro_batch_rows: of one forward pass.
    """

    def __init__(
        self,
        config: TrainConfig,
        worker: TrainWorker,
        batches: CountedMixture,
        judged: Mapping[str, NDArray[np.int64]],
        references: References,
        micro_batch_rows: int,
    ) -> None:
        self._config, self._worker, self._batches = config, worker, batches
        self._judged, self._references, self._micro_batch_rows = judged, references, micro_batch_rows
        self._n_known = 0

    @property
    def tokens(self) -> int:
        """Scored each time, of all domains together."""
        return sum(len(rows) for rows in self._judged.values()) * self._config.seq_len

    def before(self, step: int, model: LM, progress: Progress) -> None:
        """To be called before each step, with the model as it then is. Raises TrainingDiverged."""
        for said in progress.data_path[self._n_known :]:  # of a run that goes on
            self._extend(Segment.from_json(said))
        if step < self._batches.n_steps:
            return
        assert self._config.adaptive is not None, "a judge is for shares that adapt"
        if self._config.adaptive.compares and not progress.reference:
            progress.reference = self._of_references()
        path = [Segment.from_json(said) for said in progress.data_path]
        found = next_segment(self._config, path, self._losses(model, list(self._judged)), progress.reference)
        if not all(isfinite(loss) for loss in found.losses.values()):
            raise TrainingDiverged(f"step {step}: a domain's loss is not finite: {dict(found.losses)}")
        progress.data_path.append(found.to_json())
        self._extend(found)

    def _extend(self, segment: Segment) -> None:
        assert segment.step == self._batches.n_steps, f"a segment from step {segment.step} does not follow"
        rows = [segment.rows[domain] for domain in self._batches.domains]
        self._batches.append(np.tile(np.array(rows, dtype=np.int64), (segment.n_steps, 1)))
        self._n_known += 1

    def _of_references(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for model, domains in self._references():
            found |= self._losses(model, domains)
        return found

    @torch.no_grad()
    def _losses(self, model: LM, domains: Sequence[str]) -> dict[str, float]:
        """Mean negative log likelihood per token. The model is left as it was."""
        was_training = model.training
        model.eval()
        sums = torch.zeros(len(domains), dtype=torch.float64, device=self._worker.device)
        for place, domain in enumerate(domains):
            for tokens, targets in self._parts(self._judged[domain]):
                output = model(tokens)
                sums[place] += next_token_loss(model.logits(output.hidden_BTD, output.mix_BTE), targets).double()
        model.train(was_training)
        sum_over_ranks([sums], self._worker.world_size)
        same_on_all_ranks(sums, self._worker.world_size)
        n_tokens = {domain: len(self._judged[domain]) * self._config.seq_len for domain in domains}
        return {domain: total / n_tokens[domain] for domain, total in zip(domains, sums.tolist(), strict=True)}

    def _parts(self, rows: NDArray[np.int64]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's micro-batches; all ranks have as many, since where layers are gathered they must meet."""
        world, size = self._worker.world_size, self._micro_batch_rows
        own = rows_of_rank(rows, self._worker.rank, world)
        for number in range(micro_batches_of_rank(len(rows), size, world)):
            part = own[number * size : (number + 1) * size]
            counts = len(part) > 0
            tokens = torch.from_numpy(part if counts else rows[:1]).to(self._worker.device)
            yield tokens[:, :-1], tokens[:, 1:] if counts else torch.full_like(tokens[:, 1:], IGNORED)
