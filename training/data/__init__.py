"""Training data: photos with their prompts by number, their degradation on the device, and what is computed once."""
