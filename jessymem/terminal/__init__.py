"""The command line: `commands` lists the commands, which parse, call and show.

`stores` is what they work on, `shell` where they meet the system; `pictures` are shown, `wording`
turns values into safe text, `records` into JSON. All but the last two need the extra ``cli``;
`jessymem.cli` says so where it is missing.
"""
