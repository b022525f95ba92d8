"""Memory in blocks: the allocator over the pools, its arrays, and what it tells of itself."""
