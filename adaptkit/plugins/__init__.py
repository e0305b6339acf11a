"""Load plugins and read what they provide."""
