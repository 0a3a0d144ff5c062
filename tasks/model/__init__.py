"""From images to a decided model version: training jobs, the registry, the gate.

Nothing here knows of the endpoint.
"""
