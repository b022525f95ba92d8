"""Scans over all layers: byte searches, and a user's own compiled kernel, on several threads.

`scans` has a function for each method; `spans` says where the bytes are, `workers` are the threads,
`needles` and `searching` say what a search is, `applying` what a user's kernel is called with,
`hits` what comes out.
"""
