"""`python -m prunion.benchmarks.backbones`: measure the rows of the backbone table."""

from prunion.benchmarks.backbones.measure import backbones_command

if __name__ == "__main__":
    backbones_command()
