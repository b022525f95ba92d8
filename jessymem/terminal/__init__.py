"""The command line: `commands` parse and call, `shell` meets the system, `pictures` show.

`wording` turns values into safe text, `records` into JSON. `commands`, `shell` and `pictures` need
the extra ``cli``; `jessymem.cli` says so where it is missing.
"""
