"""`python -m prunion.benchmarks.learning`: train the rows of the learning table."""

from prunion.benchmarks.learning.rows import main

if __name__ == "__main__":
    main()
