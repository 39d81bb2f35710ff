"""The explorer: a page on loopback over a stored study; neither torch nor code of the study."""
