"""Scans over all layers: searches, and a user's own compiled kernel, on several threads.

`scans` has a function for each method; `spans` says where the bytes are, `workers` are the threads,
`searching` shares a search out; `needles`, `words` and `patterns` (with `prefilters`) say what is
searched for, `hits` and `batches` what comes out; `applying` what a user's kernel is called with.
"""
