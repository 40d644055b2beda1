"""Image degradation: what turns a clean photograph into the kind of input that restoration models train on."""
