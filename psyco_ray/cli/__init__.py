"""The command ``psyco-ray``: arguments, one function per command, and what it prints.

Each file holds a command's arguments (`add`) beside the function that runs it. A command loads a job, holds its run
directory and Ray while it works, and renders the results. The resource plan lives here, because only a command prints
it. No other package imports this one.
"""
