"""Small, realistic PyTorch evals: some legal, some not. Run one with ``python -m examples.slot_context``."""
