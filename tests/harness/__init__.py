"""What tests share: the host inside the test process, small checkpoints made from a seed, node inspection."""
