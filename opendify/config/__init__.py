"""What the operator has set: read once at the start, checked as a whole."""
