"""Thin pipelines that only say what is built from what; `wiring` joins them to Ray, MLflow and storage.

Reading order: `bam` (the whole method as a DAG), then what it is joined from: `texts` and `imports` (what there is to
begin with), `training_stages`, `matching` (how long each trains), `exports`, `seeding` (the same for several seeds),
`plugging`. `recipe` is what a person writes, `stages` what each kind of stage does.

`runner` runs a plan, `attempt` one stage of it, wherever that is. `workload` counts for the planner. `report` and
`results` make pages of what runs left, `starting` and `mergekit` write recipes, `cli` is the command line.
"""
