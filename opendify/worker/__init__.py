"""The Gunicorn worker. It imports nothing of the application that it serves but ``streaming``."""
