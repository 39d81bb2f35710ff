"""A study's rows: files and data sets of people, checked, split, and on axes with slots."""
