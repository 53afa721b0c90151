"""The DAG without any I/O: stages and records in, decisions out. Tested with tables, no cluster.

Reading order: `stage` (what a stage is), `key` (what identifies its result), `record` (what is written when it is
done), `select` (which stages are asked for), `plan` (what happens to each, and why), `schedule` (what may start now).
"""
