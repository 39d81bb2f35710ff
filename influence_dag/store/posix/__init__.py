"""Stores in folders: hard links, locks of the system, renames, times of modification."""
