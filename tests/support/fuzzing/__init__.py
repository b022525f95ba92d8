"""Hostile input, made by the million: what is tried (`targets`), how it is made, what must hold.

`python tests/support/fuzzing` runs it (`run`), `python tests/support/fuzzing --guided` with the
paths through the code as a guide (`guided`).
"""
