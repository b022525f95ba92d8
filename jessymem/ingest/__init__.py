"""Folders to region files: `folders` finds, `manifest` describes, `numbering` numbers.

`npy` reads arrays, `building` plans it all, and then writes.
"""
