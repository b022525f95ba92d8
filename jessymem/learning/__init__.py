"""What is learned in memory, and how it becomes permanent.

`layers` is one learned layer, `region` and `rows` a dimension with learned layers among those of
its file; `creation`, `writer`, `overlays` and `crystallization` are the ways in which it changes,
each on an `Engine`.
"""
