"""The Python interface: one module for each verb, as on the command line."""
