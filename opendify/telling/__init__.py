"""How an answer is told: its text, its reasoning, its sources and where it is cut. No I/O."""
