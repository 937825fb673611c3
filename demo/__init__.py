"""A demo Dify: answers on loopback as Dify does, so that OpenDify can be tried at once.

It keeps everything in memory and calls nobody. Run it with ``python -m demo``.
"""
