"""Upcycling is a table: a variant is a list of rules over tensor names, and one `apply` follows them.

Reading order: `rules` (what a rule is), `variants` (BAM, BTX, soup as rules), `merge` and `router_init` (the
two tables that rules name), `apply` (coverage check, then one tensor at a time), `receipt` (what holds before
any training).
"""
