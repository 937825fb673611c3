"""How much each caller may ask for. In Redis all workers count together; without one, or while it
is away, each worker lets through its share: the limit divided by the number of workers."""
