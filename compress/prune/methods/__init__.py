"""One method per file: `choose(context) -> Keep`, from calibration inputs and a share of MACs. A new one is a file here."""
