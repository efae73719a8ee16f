"""Schedules, one file per kind of kernel: `ANCHOR` (the block that the rule is for, '' for rules by shape), `schedule`, and the expression that the
importer emits for it. A new rule is a new file; `apply.py` finds it by itself."""
