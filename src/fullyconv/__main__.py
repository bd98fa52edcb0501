"""``python -m fullyconv`` and the ``fullyconv`` command."""

from fullyconv.cli import main

if __name__ == "__main__":
    main()
