"""The paper's figures, drawn from the results table or from named artifacts.

No figure computes a result: what it shows can be read in the table it was given.
"""
