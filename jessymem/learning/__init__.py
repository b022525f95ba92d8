"""What is learned in memory, and how it becomes permanent.

`layers` is one learned layer, `region` a dimension with learned layers among those of its file,
`verbs` what a manager offers, `crystallize` the way to disk, step by step.
"""
