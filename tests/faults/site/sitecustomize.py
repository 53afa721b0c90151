"""For processes that are not forked from the tests' own (Ray's workers): `inject`, and a clock that is wrong.

Python imports this at its start, since the folder is on PYTHONPATH.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

LOOP = "bam_core.train.loop"


class _AfterLoop:
    """Finds the loop's module as Python would, and has `inject` change it once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != LOOP:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_install(module):
            load(module)
            own = importlib.util.spec_from_file_location("inject", Path(__file__).parent.parent / "inject.py")
            inject = importlib.util.module_from_spec(own)
            own.loader.exec_module(inject)
            inject.install(module, Path(os.environ[inject.FOLDER]))

        spec.loader.exec_module = load_and_install
        return spec


if "BAM_TEST_FAULTS" in os.environ:
    sys.meta_path.insert(0, _AfterLoop())

if "BAM_TEST_CLOCK_S" in os.environ:
    ahead, right = float(os.environ["BAM_TEST_CLOCK_S"]), time.time
    time.time = lambda: right() + ahead
