"""Adapters: each outside library is known to one or two files here, and to nothing else.

What they implement is in `bam_core.protocols`; who joins them to pipelines is `pipelines.wiring`.

storage, store       files under a URI; artifacts in them. Then leases, record_files, run_files, pin_files, signing
sources              text of a recipe: text_files, text_rows, hub_text, plugged_text, quickstart
text_looking         a look at text before there is a recipe (`bam init`); hub_looking: the same of a data set
model_sources        checkpoints of a recipe: hub_models
local_*              stages, training and searches in this process
ray_*                the same on a cluster; ray_jobs, job_package: a run as a job of it
mlflow_*             the view: connect, view and tracker first, then what each page shows; registry_*: its registry
openai_*             an export behind HTTP; lm_eval_adapter: a model as lm-eval sees it
provenance, devices  who ran what, from which code (wheel_commit: of an installed wheel), on what
system_metrics       while it runs: gpu_metrics, live_log, logs
"""
