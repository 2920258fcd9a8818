"""What was decided about every pair, and why: the ledger, subsets, explanations, maps by stage."""
