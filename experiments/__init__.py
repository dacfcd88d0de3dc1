"""One file for each table or figure; run as ``python -m experiments.<name>``."""
