"""What a run will take before it starts: seconds, memory, money and energy of every stage, by arithmetic.

Reading order: `work` (what a stage does), `calibration` (what a device does in a second, and how that was fitted),
`estimate` (the one over the other), `fit` (does it fit, and what is the smallest change if not), `cluster` (the nodes),
`place` (when each stage runs on them). `measure` is the only one that computes anything: it makes a calibration.

Invariant: no figure of a device is written here; all come from a calibration. Nothing but `measure` loads torch.
"""
