"""What knows MLflow: runs, packaged models, registry, promotion, and the plugins.

MLflow loads modules of this package while it is itself being imported, so nothing is imported here.
"""
