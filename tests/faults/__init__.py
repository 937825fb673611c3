"""Each promise of reliability, broken on purpose by a Dify or a caller that misbehaves."""
