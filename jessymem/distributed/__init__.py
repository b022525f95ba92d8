"""Questions to many region files at once, as Dask collections; needs the extra ``distributed``.

`find`, `count`, `scan`, `select`, `layers` and `array` plan from a listing alone and are lazy: what
they return is computed by the Dask scheduler that is current, a cluster's or this process's own.
"""

from jessymem.distributed.collections import array, count, find, layers, scan, select

__all__ = ["array", "count", "find", "layers", "scan", "select"]
