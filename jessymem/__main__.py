"""``python -m jessymem``: the command line."""

from jessymem.cli import main

if __name__ == "__main__":
    main()
