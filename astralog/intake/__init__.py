"""The bytes of a request to the lines that are stored: read, inflate, decode, validate, encode."""
