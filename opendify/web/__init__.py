"""The door: routes, error answers and limits. The only rooms that know Flask."""
