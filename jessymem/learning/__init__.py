"""What is learned in memory, and how it becomes permanent.

`verbs` is what a manager offers, `layers` one learned layer, `region` and `room` a dimension with
learned layers among those of its file; `creation`, `overlays` and `crystallization` are the three
ways in which it changes.
"""
