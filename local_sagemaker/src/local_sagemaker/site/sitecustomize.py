"""Imported by every Python process of a container when it starts."""

from local_sagemaker.closed_imports import close
from local_sagemaker.isolation import isolate

close()
isolate()
