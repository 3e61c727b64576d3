"""`python -m spiritrt`: the command `spiritrt`."""

from spiritrt.cli import main

if __name__ == "__main__":
    main()
