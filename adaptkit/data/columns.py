"""Names of the columns of images that have a meaning after loading."""

from __future__ import annotations

#: images with the same value belong together, such as those of one patient, and are never divided
GROUP = "group"
#: the part of the world that an image is from, such as a site or a survey
DOMAIN = "domain"
