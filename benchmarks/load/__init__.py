"""Load on the service, on loopback: beside other model servers, beside the bare Scorer, and beyond what it can bear."""
