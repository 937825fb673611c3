"""What tests share that belongs to no single area."""
