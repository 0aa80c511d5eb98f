"""Learning by weights: rows from programs, a student with a LoRA adapter, and the ways to train it."""
