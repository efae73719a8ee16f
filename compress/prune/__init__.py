"""Structured pruning: what can be removed (families/), what to remove (methods/), and a module that is really smaller (slim.py)."""
