"""Performance by group of patients, and how far case mix explains the gaps."""
