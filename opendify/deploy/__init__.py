"""The parts of deploy.sh that are written in Python: configuration files, keys, backups and probes.
The script runs ``python -m opendify.deploy`` in the image, or in a checkout next to it."""
