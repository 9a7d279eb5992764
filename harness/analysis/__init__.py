"""Numbers of many records: groups, statistics, ranks, comparisons."""
