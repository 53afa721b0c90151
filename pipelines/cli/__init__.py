"""The command line (DESIGN, section 8). Each command parses, calls `wiring`, and prints.

app.py       the entry, common options, exit statuses       text.py     numbers, ages and tables for people
runs.py      run, plan, stage                               tables.py   plans, models, results as tables
artifacts.py ls, show (step0.py), tree, get                 display.py  the live table and the plain lines
views.py     lineage, ui, generate                       experts.py  expert add, remove, extract; blame
doctor.py    doctor                                      forecasts.py what a plan takes on a cluster, as tables
comparing.py diff                                       scoring.py  tasks, lm-eval
verifying.py verify, keygen                                 exchange.py adopt
chatting.py  chat                                       moving.py   import-config
serving.py   serve                                        init.py     init (asking.py: its questions)
ending.py    how a run ends, and what to do next         commands.py examples in help texts, the nearest command
completing.py completion, and what shells are offered    units.py    ages, sizes and numbers as they are typed
sections.py what `bam --help` lists, by what one wants to do

Importing this package imports neither torch nor Ray nor MLflow: `bam --help` answers at once. So `wiring`,
which joins all of them, is imported inside the commands that need it.
"""

from pipelines.cli.app import main

__all__ = ["main"]
