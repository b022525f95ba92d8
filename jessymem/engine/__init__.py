"""The published state and its one writer; knows nothing of users.

`Engine` publishes, maps, evicts and brings back; `snapshot` is one published state, `loading` the
way from a name to a checked region, `locations` where the layers of a batch lie, `policies` who
goes first when memory runs short, `sampling` how long reads take, `records` what is logged.
"""
