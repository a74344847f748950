"""What the proofs share: running tools, loop devices, random trees, readers of ext4 and judges."""
