"""Kernels: arrays and integers in, integers out.

They never raise, allocate nothing, and import nothing of `jessymem` above them. Each is a plain
Python function until `jessymem.kernels._jit.promote` compiles it; reach them as `module.name`,
never by a name bound early. `schema` holds the dtypes and codes and needs no numba.
"""
