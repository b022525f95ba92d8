"""Region files.

`layout` reads tables out of bytes and `rules` checks them, `encoding` makes bytes of layers,
`verification` compares them with their checksums, `faults` words what is broken; `builder` writes
files, `region` maps them.
"""
