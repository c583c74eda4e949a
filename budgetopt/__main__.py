"""`python -m budgetopt` is the command `budgetopt`."""

from budgetopt.cli import main

if __name__ == "__main__":
    main()
