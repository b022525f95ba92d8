"""Sources to region files (`build`), and layers to files of other formats (`export`).

`discovery` finds sources: `folders`, `tables`, `arrow`, `archives`. `manifest` describes them,
`numbering` numbers them, `building` plans it all and then writes, `receipts` note from what.
`exporting` chooses layers, `writers` write them, under names that `file_names` gives out.
"""
