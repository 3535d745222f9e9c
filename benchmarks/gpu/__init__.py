"""Everything that needs a GPU: `python -m prunion.benchmarks.gpu`."""
