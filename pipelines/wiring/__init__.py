"""The composition root: the only package that joins the pipelines to Ray, MLflow and storage.

Slow libraries are imported where they are composed, so that a plan, or a run that reuses everything, pays for none.
"""

from infra.adopting import Adopted
from infra.provenance import mask_text
from infra.ray_jobs import Job, RayJobs
from pipelines.wiring.carding import Card, card
from pipelines.wiring.chatting import Chat, Sampling, open_chat
from pipelines.wiring.checkup import Check, doctor
from pipelines.wiring.comparing import compare
from pipelines.wiring.editing import Edited, add_expert, remove_expert
from pipelines.wiring.exchanging import adopt_expert
from pipelines.wiring.exporting import ExportedFolder, export
from pipelines.wiring.extracting import Extracted, extract_expert
from pipelines.wiring.importing import ImportedModel, Looked, import_model, look_at_model
from pipelines.wiring.jobs import CONTINUES, Submission, Submitted, open_jobs, submit
from pipelines.wiring.looking import generate, lineage
from pipelines.wiring.origins import blame
from pipelines.wiring.pacing import measure_paces
from pipelines.wiring.planning import Plan, make_plan
from pipelines.wiring.promoting import Promotion, promote
from pipelines.wiring.running import run, run_stage
from pipelines.wiring.scoring import TaskResults, lm_eval, score_files
from pipelines.wiring.serving import Serving, serve
from pipelines.wiring.settings import Settings, open_store, open_tracker
from pipelines.wiring.tabulating import study_results
from pipelines.wiring.tracking import lineage_from_mlflow, lineage_sync, serve_ui
from pipelines.wiring.verifying import Checked, Verified, make_keys, verify
from pipelines.wiring.weighing import Weighed, weigh

__all__ = [
    "CONTINUES",
    "Adopted",
    "Card",
    "Chat",
    "Check",
    "Checked",
    "Edited",
    "ExportedFolder",
    "Extracted",
    "ImportedModel",
    "Job",
    "Looked",
    "Plan",
    "Promotion",
    "RayJobs",
    "Sampling",
    "Serving",
    "Settings",
    "Submission",
    "Submitted",
    "TaskResults",
    "Verified",
    "Weighed",
    "add_expert",
    "adopt_expert",
    "blame",
    "card",
    "compare",
    "doctor",
    "export",
    "extract_expert",
    "generate",
    "import_model",
    "lineage",
    "lineage_from_mlflow",
    "lineage_sync",
    "lm_eval",
    "look_at_model",
    "make_keys",
    "make_plan",
    "mask_text",
    "measure_paces",
    "open_chat",
    "open_jobs",
    "open_store",
    "open_tracker",
    "promote",
    "remove_expert",
    "run",
    "run_stage",
    "score_files",
    "serve",
    "serve_ui",
    "study_results",
    "submit",
    "verify",
    "weigh",
]
