"""Files of object stores, over fsspec: ranges of them, and whole ones in a cache directory.

`files` asks a store, again where that may help; `cache` keeps what was fetched. Neither knows what
a region is. Both need the extra ``remote``.
"""
