"""One adapter per family of models; a new one is a file here with `CLASSES` and `describe`."""
