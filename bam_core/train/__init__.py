"""Training: a run is a pure function of (model, data, TrainConfig); where it runs changes only its speed.

Reading order: `optim` (fp32 master weights, AdamW, schedule), `step` (one global batch to one gradient), `parallel`
(the same batch over several ranks), `sharded` (each rank holds a part of the model), `layers` (recomputed, compiled),
`routers` (what a step does to routing beside the gradient), `collapse` (the alarm for experts without work), `adapt`
and `judge` (shares of data that follow the losses), `distil` (a teacher beside the text), `pieces` and `state` (all
that a resume needs), `saving` (when it is written), `loop`
(the run); `search` (which of several runs is best).
"""
