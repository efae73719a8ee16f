"""The report: one self-contained HTML page and one JSON file for one or more output folders."""
