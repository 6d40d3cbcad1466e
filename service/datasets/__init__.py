"""Whole data sets: every row scored, the valid ones told from the others, on one machine or many.

    INPUT -> survey (what is there, by digests) -> shards of rows, each: read -> `score_table` -> write, mark as done
      -> finish: false discovery rate over all rows, report

Needs the extra the extra `datasets`.
"""
