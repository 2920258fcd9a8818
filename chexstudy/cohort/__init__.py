"""What exists: the cohort table, the images behind it, and the sources it is built from."""
