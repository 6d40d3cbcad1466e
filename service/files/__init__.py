"""Files of rows, local or remote: found, divided into row ranges, read in order, written whole.

`formats` and `locations` need the extra `datasets`.
"""
