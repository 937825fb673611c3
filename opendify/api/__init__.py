"""The HTTP surface: routes, error responses and limits. Only these modules import Flask."""
