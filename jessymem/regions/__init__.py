"""Region files: `layout` (bytes to tables and back), `builder` (write), `region` (read)."""
