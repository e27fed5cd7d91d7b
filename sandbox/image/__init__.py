"""The container image without a Docker engine: built with buildah, run in namespaces of its own.

Needs Linux, root, and Debian's packages buildah and debootstrap.
"""
