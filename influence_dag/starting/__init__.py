"""A working folder for data of one's own: what `init` finds in files, and what it writes."""
