"""`python -m projections`."""

from projections.cli import main

main()
