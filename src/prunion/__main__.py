"""`python -m prunion`: the command where no script is on the path."""

from prunion.runtime.cli.start import main

main()
