"""Names of the images that the components run in."""

from importlib.metadata import version

TRAINER = f"distrinews-trainer:{version('distrinews')}"
