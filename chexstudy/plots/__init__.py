"""The paper's figures, one function each, drawn from the results table or from named artifacts.

No figure computes a result: what it shows can be read in the table it was given. Each room has three doors:
``select_*`` (the rows a figure shows), ``plot_*`` (the figure) and ``describe_*`` (its caption, with n, seeds and the
kind of interval).
"""
