"""On a GPU (`python -m prunion.benchmarks.gpu` stays, by `__main__.py`)."""
