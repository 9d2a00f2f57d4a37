"""The command ``psyco-ray``: arguments, one function per command, and what it prints.

Commands load a job, hold its run directory and Ray while the work goes on, and render the facts that come back. The
resource plan lives here, because only a command prints it. No other package imports this one.
"""
