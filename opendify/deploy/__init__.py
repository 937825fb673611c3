"""What deploy.sh leaves to Python: configuration files, keys, backups and probes. The script runs
``python -m opendify.deploy`` in the image, or in a checkout beside it."""
