"""jessymem beside its peers on the user's own machine: ``jessymem bench``.

`run` goes through the table's families, one module each: `reading`, `allocating`, `starting`,
`scanning`, `writing`, `holding`. They use what the dashboards of `asv_bench` use too: `data` makes
the files, `peers` do the same work elsewhere, `loops` are what a user would compile, `timing`
measures, `footprint` asks processes what they hold.
"""
