"""Whole data sets: score every row and separate valid from invalid rows, on one machine or many.

    INPUT -> scan (files and their digests) -> shards of rows; each: read -> `score_table` -> write, mark as done
      -> finish: false discovery rate over all rows, report

Needs the extra `datasets`.
"""
