"""The endpoint's data-capture records: found, decoded, cached, reduced to one row per inference.

What they say is in report/.
"""
