"""The main job on real input: `run` does it, `measurements` and `crowd` time it.

`library` finds the real text that is always at hand.
"""
