"""The DAG without any I/O: stages and records in, decisions out. Tested with tables, no cluster.

Reading order: `stage` (what a stage is), `key` (what identifies its result), `record` (what is written when it is
done), `select` (which stages are asked for), `plan` (what happens to each, and why), `schedule` (what may start now).

What is asked of records afterwards: `lineage` (the graph; `lineage_render` is the table of its forms), `diff` (why two
artifacts differ), `blame` (who made a tensor), `verify` (whether records hold together), and `runs`, `pins`,
`holdings`, `reach` (what belongs together, and what may go). `adopted`: an expert of another store.
"""
