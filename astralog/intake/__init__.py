"""Convert the body of a request to stored lines: read, decompress, decode, validate, encode."""
