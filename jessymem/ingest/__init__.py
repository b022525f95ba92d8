"""Folders to region files: `folders` finds, `manifest` describes, `numbering` numbers.

`building` plans it all, and then writes.
"""
