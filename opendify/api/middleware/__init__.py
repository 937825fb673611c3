"""Code that runs for every request, before and after its route."""
