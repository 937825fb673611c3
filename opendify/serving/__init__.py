"""The worker in which Gunicorn serves the application. It knows nothing of what it serves."""
