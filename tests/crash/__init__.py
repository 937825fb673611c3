"""What happens when a process dies or the disk fails, at every step and at random."""
