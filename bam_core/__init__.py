"""Branch-Attend-Mix: the science and the plan, without Ray, MLflow, network or pydantic.

Read top-down: `config` (what a model and a training phase are), `nn` (the model), `upcycle` (dense experts to
a mixture), `data`, `train`, `evaluate`, and `graph` (which stages run, and why).
"""
