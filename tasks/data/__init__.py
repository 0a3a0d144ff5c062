"""Images: the CIFAR-100 archive, generated drawings, and what is uploaded of them with its manifests.

Nothing here trains or evaluates.
"""
