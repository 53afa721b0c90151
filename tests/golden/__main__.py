"""`python -m tests.golden`: write the losses of this code on this machine."""

from tests.golden import runs

if __name__ == "__main__":
    runs.write()
    print(f"{len(runs.RUNS)} runs on {runs.fingerprint()}: {runs.FILE.name}")
