"""Files of rows, wherever they are: found, cut into ranges, read forward, written whole. Needs the extra `datasets`."""
