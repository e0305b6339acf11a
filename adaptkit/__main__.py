"""Run the command line as `python -m adaptkit`."""

from adaptkit.cli import main

if __name__ == "__main__":
    main(prog_name="adaptkit")
