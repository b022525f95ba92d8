"""What a running process shows of its memory to others: a small file that it writes, and they read.

A manager writes one where its `MemoryConfig` has ``status="auto"``, or a path; see
``docs/monitoring.md``. `read`, `running` and `watch` are for other processes.
"""

from jessymem.status.reader import ShownDimension, Status, read, running, watch

__all__ = ["ShownDimension", "Status", "read", "running", "watch"]
