"""The verbs of the command line, a file each: a function whose options are its signature, and examples of its use.

`fullyconv.cli` gives them to typer. They import what they need when they run, so that ``--help`` answers at once.
"""
