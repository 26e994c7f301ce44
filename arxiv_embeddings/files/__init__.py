"""Files and folders on a disk, on HDFS and in object stores."""

from . import object_store  # noqa: F401  which adds its kind of path to those that `paths` resolves
