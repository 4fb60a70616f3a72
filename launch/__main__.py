"""`python -m launch` is `reste`."""

from launch.cli import main

main()
