"""The frame's own verbs: report, verify, doctor, all."""
