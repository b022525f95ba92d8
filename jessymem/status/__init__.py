"""What a running process shows of its memory to others: a small file that it writes, and they read.

`layout` is the file's form, `writer` the thread that writes it, `reader` what others see,
`processes` which file is whose.
"""
