"""Thin pipelines that only say what is built from what; `wiring.py` joins them to Ray, MLflow and storage."""
