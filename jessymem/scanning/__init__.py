"""Scans over all layers: byte searches, and a user's own compiled kernel, on several threads.

`verbs` is the manager's part; `spans` says where the bytes are, `crew` who does the work, `needles`
and `searching` what a search is, `applying` what a user's kernel is called with, `hits` what comes
out.
"""
