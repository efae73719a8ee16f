"""Images in, boxes out: a detector of compress/codenet on this host."""
