"""Upcycling is a table: a variant is a list of rules over tensor names, and one `apply` follows them.

Reading order: `specs` (what a variant can say), `variants` (BAM, BTX, soup; their configs), `rules` (what a rule is,
and those of a variant), `merge` and `router_init` (the two tables that rules name), `compat` (which models can be
mixed), `coverage` (nothing missing, nothing lost), `apply` (one tensor at a time), `walk` and `calibrate` (routers and
scale fitted on text), `receipt` (what holds before any training), `edit` and `extract` (experts in and out),
`sparser` (cheaper attention of the same experts).

`models` is all of it in memory, in one call. Of what others trained: `opening` (a folder, or an adapter with its base),
`adapter` and `adapter_merge` (LoRA), `vocabulary` (one for models that bring their own), `fit` and `distance` (would
they make a mixture?), `presets` (variants by name). `retrace` makes a mixture's tensors again, to compare.
"""
