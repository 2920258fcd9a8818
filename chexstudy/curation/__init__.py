"""Who is kept, and why: pure functions on features, prototypes and a generator."""
