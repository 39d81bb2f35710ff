"""Stores in Icechunk repositories: in object stores, where there are no links, locks or renames."""
