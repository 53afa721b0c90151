"""What `bam --help` lists, by what one wants to do. Every command stands in one of these; a test asks for it."""

from __future__ import annotations

SECTIONS: dict[str, tuple[str, ...]] = {
    "Make": ("init", "run", "plan", "stage", "expert"),
    "Use a model": ("generate", "chat", "serve", "get", "card"),
    "Look": ("ls", "show", "tree", "diff", "lineage", "blame", "runs", "report", "ui"),
    "Measure": ("tasks", "lm-eval", "pareto", "pace", "results"),
    "On a cluster": ("submit", "jobs", "logs", "stop"),
    "From elsewhere, and for others": ("check", "import", "adopt", "import-config", "export", "promote"),
    "Keep house": ("verify", "keygen", "pin", "unpin", "pins", "gc"),
    "This program": ("doctor", "completion"),
}
