"""Limits per caller and per process. With Redis all workers share one count; without it, or while
it is unreachable, each worker allows its share: the limit divided by the number of workers."""
