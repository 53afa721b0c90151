"""Training: a run is a pure function of (model, data, TrainConfig); where it runs changes only its speed.

Reading order: `optim` (fp32 master weights, AdamW, schedule), `step` (one global batch to one gradient), `parallel`
(the same batch over several ranks), `routers` (what a step does to routing beside the gradient), `state` (all that a
resume needs), `loop` (the run).
"""
