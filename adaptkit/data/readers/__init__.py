"""Readers of image files, one kind of file each."""
