"""What a model is worth: `perplexity` per domain on held-out text, `routing` of a mixture's experts per domain.

`documents` finds the documents of packed rows and chooses some, `strided` scores a model on them.

Of a mixture's experts: `routing_sample` lists what routers did token by token, `routing_summary` what that says of them
(`information` has the formulas), `knock_out` what a domain loses without one of them.

`task_files` reads downstream tasks and `tasks` scores a model on them: by `continuations` (how likely a text is after
another), by `answers` that it generates, by its code in the `sandbox`.

`ensemble` scores the dense experts side by side, from what `strided` found for each.

`pareto` weighs what a mixture's attention costs in several forms against what it is worth; `decoding` times them.
"""
